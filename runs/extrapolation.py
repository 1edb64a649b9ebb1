"""Draws what `lineal eval --csv` wrote, the loss against the position, a line for each model and method.

    extrapolation.py TABLE.csv PICTURE.png
"""
import csv
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


def rows_of(path):
    """{(model, method): [(begin, end, nats per token)]} in the file's order."""
    lines = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            bucket = (int(row["begin"]), int(row["end"]), float(row["nats_per_token"]))
            lines.setdefault((row["model"], row["position"]), []).append(bucket)
    return lines


def draw(lines, picture):
    length = next(iter(lines.values()))[0][1]  # the first bucket is the training length
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    models = list(dict.fromkeys(model for model, _ in lines))
    colours = pyplot.get_cmap("tab20")
    best = min(loss for buckets in lines.values() for _, _, loss in buckets)
    first = max(buckets[0][2] for buckets in lines.values())
    for number, ((model, method), buckets) in enumerate(lines.items()):
        name = pathlib.Path(model).name + (f" {method}" if method else "")
        axes.plot([end / length for _, end, _ in buckets], [loss for _, _, loss in buckets], label=name,
                  color=colours(number % 20), linestyle="-" if method else "--", linewidth=2.4 if not method else 1.4,
                  marker="osd^"[models.index(model) % 4], markersize=4)
    axes.set(xscale="log", xlabel=f"positions up to, in lengths trained on ({length} tokens)", ylabel="nats per token",
             ylim=(best - 0.05, min(axes.get_ylim()[1], max(first, best + 1.5))))
    ends = sorted({end / length for buckets in lines.values() for _, end, _ in buckets})
    axes.set_xticks(ends, [f"{end:g}x" for end in ends])
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title("Loss by position beyond the training length, without training for it", fontsize=11)
    figure.savefig(picture, dpi=120)
    print(picture)


if __name__ == "__main__":
    draw(rows_of(sys.argv[1]), sys.argv[2])
