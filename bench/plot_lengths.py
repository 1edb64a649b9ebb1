"""Draws time per token against the length of the text, of every mixer, from `lineal bench --json`.

    bench/plot_lengths.py [BENCH.json] [-o docs/time_per_token.png]

Without a file it runs build/lineal bench first.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
MIXERS = ["attention", "ttt_linear", "ttt_mlp", "linear_attention", "delta_net", "gated_delta_net", "gla", "mamba", "mamba2",
          "performer", "vq_attention", "s4d"]
LENGTHS = [256 << i for i in range(8)]
NAMES = {"attention": "attention (SDPA)"}
COLOURS = ["#333333", "#1f6fb4", "#d1582b", "#3a9a4e", "#9355b0", "#b8860b", "#3aa6b9", "#c2417c", "#7a8c2e", "#8c6d5a",
           "#5b5bd6", "#2f8f83"]
PANELS = {"prefill_tokens_per_s": "reading", "train_tokens_per_s": "training: forward and backward"}


def measure(width, threads, seconds):
    command = [str(ROOT / "build/lineal"), "bench", *MIXERS, "--lengths", ",".join(map(str, LENGTHS)), "--hidden-size",
               str(width), "--seconds", str(seconds), "--threads", str(threads), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def spread(heights, gap):
    """The heights, moved as little as keeps them `gap` apart in their order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups = []  # of [indices, centre]
    for i in order:
        groups.append([[i], heights[i]])
        while len(groups) > 1:
            (below, low), (above, high) = groups[-2:]
            if high - low >= gap * (len(below) + len(above)) / 2:
                break
            members = below + above
            groups[-2:] = [[members, sum(heights[j] for j in members) / len(members)]]
    placed = [0.0] * len(heights)
    for members, centre in groups:
        for place, i in enumerate(members):
            placed[i] = centre + gap * (place - (len(members) - 1) / 2)
    return placed


def draw(axes, rows, key, mixers):
    ends = []
    for mixer, colour in zip(mixers, COLOURS):
        points = [(row["length"], 1e6 / row[key]) for row in rows if row["mixer"] == mixer and key in row]
        if not points:
            continue
        fused = all("fused" in row.get("kernels", "") for row in rows if row["mixer"] == mixer)
        axes.plot(*zip(*points), color=colour, linewidth=2 if fused else 1.4, linestyle="-" if fused else (0, (4, 2)),
                  marker="o", markersize=3.5 if fused else 2.5)
        ends.append((mixer, colour, points[-1]))
    axes.set(xscale="log", yscale="log", xlabel="tokens of the sequence", title=PANELS[key])
    axes.title.set_fontsize(11)
    lengths = sorted({row["length"] for row in rows})
    axes.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return lengths, ends


def label(axes, lengths, ends):
    low, high = (math.log(y) for y in axes.get_ylim())
    heights = spread([math.log(point[1]) for _, _, point in ends], gap=0.052 * (high - low))
    for (mixer, colour, (x, y)), height in zip(ends, heights):
        axes.annotate(NAMES.get(mixer, mixer), xy=(x, y), xytext=(lengths[-1] * 1.25, math.exp(height)), color=colour,
                      fontsize=9, va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", help="what lineal bench --json printed")
    parser.add_argument("-o", "--output", default=str(ROOT / "docs/time_per_token.png"))
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2, help="for each measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    rows = json.loads(pathlib.Path(args.bench).read_text()) if args.bench else measure(args.hidden_size, args.threads,
                                                                                     args.seconds)
    mixers = [m for m in dict.fromkeys(row["mixer"] for row in rows) if m != "identity"]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    drawn = [draw(axes, rows, key, mixers) for axes, key in zip(panels, PANELS)]
    panels[0].set_ylabel("µs per token")
    for axes, (lengths, ends) in zip(panels, drawn):
        label(axes, lengths, ends)
    width = f"width {args.hidden_size}, " if not args.bench else ""
    figure.suptitle(f"Time per token against length, one layer, {width}CPU; solid: fused kernel, dashed: LibTorch operations",
                    fontsize=11)
    figure.savefig(args.output, dpi=120)
    print(args.output)


if __name__ == "__main__":
    main()
