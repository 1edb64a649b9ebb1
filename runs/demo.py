"""The parts of runs/demo.sh that are not Lineal: gather text, compress it for comparison, plot.

    demo.py gather FOLDER [DATA]   files of DATA, else of the Python library -> FOLDER/train, FOLDER/validation
    demo.py steps SECONDS          from lineal bench's JSON on standard input: how many steps fit
    demo.py compare TEXT EVAL.json
    demo.py plot EVAL.json CONTEXT PICTURE.png
"""
import hashlib
import json
import lzma
import math
import pathlib
import statistics
import sys
import sysconfig
import zlib

TRAIN_BYTES, VALIDATION_BYTES = 4_000_000, 160_000


def library():
    """Files of the standard library, tests aside, in an order that depends on their names alone."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    aside = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__",
             "encodings"}  # tables, near copies of each other
    found = [(path.relative_to(root), path) for path in root.rglob("*.py")]
    found = [(name, path) for name, path in found if not aside & set(name.parts) and path.is_file()]
    return sorted(found, key=lambda item: hashlib.sha256(str(item[0]).encode()).hexdigest())


def write(folder, part, name, text, total):
    (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / part / "_".join(name.parts)).write_bytes(text)
    total[part] += len(text)


def gather(folder, data):
    total = {"train": 0, "validation": 0}
    if data:
        root = pathlib.Path(data)
        paths = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for path in paths:  # the last fifteenth of every file is for validation
            text = path.read_bytes()
            name = path.relative_to(root) if root.is_dir() else pathlib.Path(path.name)
            if b"\0" in text[:8192] or len(text) < 64 or any(p.startswith(".") for p in name.parts):
                continue
            cut = len(text) - len(text) // 15
            write(folder, "train", name, text[:cut], total)
            write(folder, "validation", name, text[cut:], total)
    else:
        for name, path in library():
            text = path.read_bytes()
            # Validation: long enough to ask for losses far into a document.
            part = "validation" if 16_000 <= len(text) <= 64_000 and total["validation"] < VALIDATION_BYTES else "train"
            if text and total[part] < {"train": TRAIN_BYTES, "validation": VALIDATION_BYTES}[part]:
                write(folder, part, name, text, total)
    if not all(total.values()):
        sys.exit(f"demo: no text in {data}; expected a file or a folder of text")
    for part, size in total.items():
        count = len(list((folder / part).iterdir()))
        print(f"{part}: {count} files, {size:,} bytes of {data or 'the Python library'}")


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

    buckets = result["positions"]
    positions = [(p["begin"] + p["end"]) / 2 for p in buckets]
    losses = [p["nats_per_token"] / math.log(2) for p in buckets]  # a token is a byte
    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    axes.plot(positions, losses, marker="o", markersize=3, color="#2860a0")
    axes.axvline(context, color="#888888", linestyle="--", linewidth=1)
    axes.text(context, axes.get_ylim()[1], " trained on this length", va="top", color="#555555", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes read of the document")
    axes.set_ylabel("bits per byte")
    axes.set_title("TTT-Linear: loss by position in the document, out to 16 times the training length", fontsize=10)
    axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=110)
    print("bits per byte by position")
    for p, loss in zip(buckets, losses):
        print(f"  {p['begin']:>6} to {p['end']:<6} {loss:.3f}")
    print(f"plot: {picture}")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "gather":
        gather(pathlib.Path(rest[0]), rest[1])
    elif command == "steps":
        result = json.load(sys.stdin)
        print(max(20, int(float(rest[0]) / statistics.median(result["seconds"]))))
    elif command == "compare":
        compare(pathlib.Path(rest[0]), json.loads(pathlib.Path(rest[1]).read_text()))
    else:
        plot(json.loads(pathlib.Path(rest[0]).read_text()), int(rest[1]), rest[2])
