"""Draws a CSV file: y against x, a line for each value of a column, a panel for each value of another.

    plot.py CSV PNG --x COLUMN --y COLUMN [--by COLUMN] [--panel COLUMN] [--deviation COLUMN] [--log x,y] [--bars]
            [--title TEXT]

Rows whose y is empty are left out. --deviation is the half height of error bars.
"""
import argparse
import csv

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

COLOURS = ["#1f6fb4", "#d1582b", "#3a9a4e", "#9355b0", "#b8860b", "#3aa6b9", "#c2417c", "#7a8c2e", "#333333", "#8c6d5a"]


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def distinct(values):
    return list(dict.fromkeys(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv")
    parser.add_argument("png")
    for name in ("x", "y"):
        parser.add_argument("--" + name, required=True)
    for name in ("by", "panel", "deviation", "title"):
        parser.add_argument("--" + name)
    parser.add_argument("--log", default="")
    parser.add_argument("--bars", action="store_true", help="x holds names")
    given = parser.parse_args()

    with open(given.csv, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[given.y] not in ("", "nan")]
    panels = distinct(row[given.panel] for row in rows) if given.panel else [None]
    series = distinct(row[given.by] for row in rows) if given.by else [None]
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(max(7, 4.2 * len(panels)), 3.8), layout="constrained",
                                       squeeze=False)
    for axes, panel in zip(all_axes[0], panels):
        shown = [row for row in rows if given.panel is None or row[given.panel] == panel]
        names = distinct(row[given.x] for row in shown)
        for index, name in enumerate(series):
            mine = [row for row in shown if given.by is None or row[given.by] == name]
            x = [names.index(row[given.x]) if given.bars else number(row[given.x]) for row in mine]
            y = [number(row[given.y]) for row in mine]
            bars = [number(row[given.deviation] or 0) for row in mine] if given.deviation else None
            style = {"color": COLOURS[index % len(COLOURS)], "label": name}
            if given.bars:
                width = 0.8 / len(series)
                axes.bar([place + (index - (len(series) - 1) / 2) * width for place in x], y, width, yerr=bars, **style)
            else:
                axes.errorbar(x, y, yerr=bars, marker="o", markersize=3, linewidth=1.4, capsize=2, **style)
        if given.bars:
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
            heights = [number(row[given.y]) for row in shown]
            axes.set_ylim(bottom=min(heights) - 0.3 * (max(heights) - min(heights)) - 1e-9)
        if "x" in given.log.split(","):
            axes.set_xscale("log", base=2)
        if "y" in given.log.split(","):
            axes.set_yscale("log")
        axes.set_xlabel(given.x.replace("_", " "))
        axes.set_title(panel or "", fontsize=10)
        axes.grid(alpha=0.25)
    all_axes[0][0].set_ylabel(given.y.replace("_", " "))
    if given.by:
        all_axes[0][-1].legend(fontsize=8)
    if given.title:
        figure.suptitle(given.title, fontsize=11)
    figure.savefig(given.png, dpi=110)
    print(f"plot: {given.png}")


if __name__ == "__main__":
    main()
