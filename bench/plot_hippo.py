"""Draws what `lineal hippo` recalled: the signal, its reconstruction and the error over time.

    bench/plot_hippo.py hippo.csv [-o hippo.png]
    bench/plot_hippo.py [-o hippo.png] --measure legt --order 32 ...     runs build/lineal hippo first, with the other flags

Prints what it wrote.
"""
import argparse
import csv
import pathlib
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]


def read(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in ("time", "signal", "reconstruction", "error")}


def draw(table, path, title):
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=[2, 1], layout="constrained")
    above.plot(table["time"], table["signal"], color="#333333", linewidth=2.4, label="signal")
    above.plot(table["time"], table["reconstruction"], color="#d1582b", linewidth=1.2, label="read back from the state")
    above.legend(frameon=False, loc="upper right")
    below.plot(table["time"], table["error"], color="#1f6fb4", linewidth=1)
    below.axhline(0, color="#333333", linewidth=0.5)
    below.set(xlabel="time, samples", ylabel="error")
    for axes in (above, below):
        axes.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("-o", "--output", help="the picture; by default beside the table")
    args, rest = parser.parse_known_args()
    title = "A signal, and what a HiPPO state recalls of it"
    if len(rest) == 1 and rest[0].endswith(".csv"):
        table = pathlib.Path(rest[0])
    else:
        table = pathlib.Path(args.output or "hippo.png").with_suffix(".csv")
        run = subprocess.run([str(ROOT / "build/lineal"), "hippo", *rest, "-o", str(table)], stdout=subprocess.PIPE, text=True)
        if run.returncode:
            sys.exit(run.returncode)
        title = run.stdout.rsplit("wrote", 1)[0].strip()
        print(f"wrote {table}")
    picture = args.output or table.with_suffix(".png")
    draw(read(table), picture, title)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
