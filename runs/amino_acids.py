"""Draws the attention between amino acids beside BLOSUM62.

    build/lineal eval -m MODEL FILE.fasta --similarity SIMILARITY.json
    runs/amino_acids.py SIMILARITY.json PICTURE.png
"""
import json
import pathlib
import sys


def main(source, picture):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(pathlib.Path(source).read_text())
    letters = found["letters"]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    panels = [("blosum62", "BLOSUM62"), ("attention", f"attention, {found['sequences']} sequences")]
    for panel, (name, title) in zip(axes, panels):
        rows = found[name]
        apart = [[float("nan") if i == j else value for j, value in enumerate(row)] for i, row in enumerate(rows)]
        figure.colorbar(panel.imshow(apart, cmap="viridis"), ax=panel, shrink=0.8)
        panel.set_xticks(range(len(letters)), letters, fontsize=8)
        panel.set_yticks(range(len(letters)), letters, fontsize=8)
        panel.set_title(title, fontsize=10)
    figure.suptitle(f"Pairs of amino acids: correlation {found['correlation']:.2f}", fontsize=11)
    figure.savefig(picture, dpi=110)
    print(f"plot: {picture}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
