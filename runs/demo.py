"""The parts of runs/demo.sh that are not Lineal: gather text, compress it for comparison, plot.

    demo.py gather FOLDER      the Python library's own source and documentation -> FOLDER/train, FOLDER/validation
    demo.py compare TEXT EVAL.json
    demo.py plot EVAL.json CONTEXT PICTURE.png
"""
import hashlib
import json
import lzma
import pathlib
import sys
import sysconfig
import zlib

TRAIN_BYTES, VALIDATION_BYTES = 4_000_000, 260_000


def documents():
    """Files of the standard library, tests aside, in an order that depends on their names alone."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    aside = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__",
             "encodings"}  # tables, near copies of each other
    found = []
    for path in library.rglob("*.py"):
        name = path.relative_to(library)
        if not aside & set(name.parts) and path.is_file():
            found.append((hashlib.sha256(str(name).encode()).hexdigest(), name, path))
    return [(name, path) for _, name, path in sorted(found)]


def gather(folder):
    parts = {"validation": VALIDATION_BYTES, "train": TRAIN_BYTES}
    total = dict.fromkeys(parts, 0)
    count = dict.fromkeys(parts, 0)
    for name in parts:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, path in documents():
        text = path.read_bytes()
        # Long enough to ask for losses far into a document.
        part = "validation" if 16_000 <= len(text) <= 64_000 and total["validation"] < VALIDATION_BYTES else "train"
        if total[part] >= parts[part] or not text:
            continue
        (folder / part / "_".join(name.parts)).write_bytes(text)
        total[part] += len(text)
        count[part] += 1
    for part in ("train", "validation"):
        print(f"{part}: {count[part]} files, {total[part]:,} bytes of the Python library")


def compare(path, result):
    text = b"".join(p.read_bytes() for p in sorted(path.iterdir())) if path.is_dir() else path.read_bytes()
    bits = lambda size: 8 * size / len(text)
    print(f"bits per byte of {len(text):,} bytes of validation text")
    print(f"  lineal   {result['bits_per_byte']:.3f}")
    print(f"  gzip -9  {bits(len(zlib.compress(text, 9))):.3f}")
    print(f"  xz -9    {bits(len(lzma.compress(text, preset=9))):.3f}")


def plot(result, context, picture):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    positions = [(p["from"] + p["to"]) / 2 for p in result["positions"]]
    losses = [p["bits_per_byte"] for p in result["positions"]]
    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    axes.plot(positions, losses, marker="o", markersize=3, color="#2860a0")
    axes.axvline(context, color="#888888", linestyle="--", linewidth=1)
    axes.text(context, axes.get_ylim()[1], " trained on this length", va="top", color="#555555", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes read of the document")
    axes.set_ylabel("bits per byte")
    axes.set_title(f"TTT-Linear, {result['parameters'] / 1e6:.1f} M parameters: loss by position", fontsize=10)
    axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=110)
    print(f"plot: {picture}")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "gather":
        gather(pathlib.Path(rest[0]))
    elif command == "compare":
        compare(pathlib.Path(rest[0]), json.loads(pathlib.Path(rest[1]).read_text()))
    else:
        plot(json.loads(pathlib.Path(rest[0]).read_text()), int(rest[1]), rest[2])
