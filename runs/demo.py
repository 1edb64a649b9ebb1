"""The parts of runs/demo.sh that are not Lineal: gather text, compress it for comparison, plot.

    demo.py gather FOLDER [DATA]   files of DATA, else of the Python library -> FOLDER/train, FOLDER/validation
    demo.py steps SECONDS          from lineal bench's JSON on standard input: how many steps fit
    demo.py compare TEXT EVAL.json FORGETFUL.json CONTEXT
    demo.py plot EVAL.json CONTEXT STREAM PICTURE.png
"""
import gzip
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


def read(path):
    try:
        text = path.read_bytes()
        return gzip.decompress(text) if path.suffix == ".gz" else text
    except (OSError, EOFError) as error:
        sys.exit(f"demo: {path}: {error}")


def given(data):
    """Files of text below a path, hidden ones aside."""
    root = pathlib.Path(data)
    paths = sorted(root.rglob("*")) if root.is_dir() else [root]
    texts = [(path, read(path)) for path in paths
             if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return [(path, text) for path, text in texts if len(text) >= 64 and b"\0" not in text[:8192]]


def gather(folder, data):
    parts = {"train": [], "validation": []}  # of (name, text)
    size = {"train": 0, "validation": 0}

    def add(part, path, text):
        parts[part].append((path.name, text))
        size[part] += len(text)

    if data:
        texts = given(data)
        aside = min(1 / 15, VALIDATION_BYTES / max(1, sum(len(text) for _, text in texts)))
        for path, text in texts:  # the end of every file is for validation
            cut = len(text) - int(len(text) * aside)
            add("train", path, text[:cut])
            add("validation", path, text[cut:])
    else:
        for name, path in library():
            text = path.read_bytes()
            # Validation: long enough to ask for losses far into a document.
            part = "validation" if 16_000 <= len(text) <= 64_000 and size["validation"] < VALIDATION_BYTES else "train"
            if text and size[part] < {"train": TRAIN_BYTES, "validation": VALIDATION_BYTES}[part]:
                add(part, path, text)
    if not all(size.values()):
        sys.exit(f"demo: no text in {data}; expected a file or a folder of text")
    for part, files in parts.items():
        (folder / part).mkdir(parents=True)
        for number, (name, text) in enumerate(files):
            (folder / part / f"{number:03d}_{name.removesuffix('.gz')}").write_bytes(text)
        print(f"{part}: {len(files)} files, {size[part]:,} bytes of {data or 'the Python library'}")


def compare(path, result, forgetful, context):
    text = b"".join(p.read_bytes() for p in sorted(path.iterdir())) if path.is_dir() else path.read_bytes()
    bits = lambda size: 8 * size / len(text)
    print(f"bits per byte of {len(text):,} bytes of validation text")
    for name, value in [("lineal", result["bits_per_byte"]),
                        (f"lineal, its state thrown away every {context}", forgetful["bits_per_byte"]),
                        ("gzip -9", bits(len(zlib.compress(text, 9)))), ("xz -9", bits(len(lzma.compress(text, preset=9))))]:
        print(f"  {name:40} {value:.3f}")


def plot(result, context, stream, picture):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # As far as a third of the documents go.
    buckets = [p for p in result["positions"]
               if 3 * p["tokens"] >= result["documents"] * (p["end"] - p["begin"])]
    positions = [(p["begin"] + p["end"]) / 2 for p in buckets]
    losses = [p["nats_per_token"] / math.log(2) for p in buckets]  # a token is a byte
    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    axes.plot(positions, losses, marker="o", markersize=3, color="#2860a0")
    axes.margins(y=0.12)
    for place, words in [(context, "gradients reach this far"), (stream, "trained to this length")]:
        axes.axvline(place, color="#888888", linestyle="--", linewidth=1)
        axes.annotate(words, (place, 1), xycoords=("data", "axes fraction"), xytext=(4, -4), textcoords="offset points",
                      va="top", color="#555555", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes read of the document")
    axes.set_ylabel("bits per byte")
    axes.set_title("TTT-Linear: loss by position in documents that it was not trained on", fontsize=10)
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
        compare(pathlib.Path(rest[0]), *(json.loads(pathlib.Path(path).read_text()) for path in rest[1:3]), rest[3])
    else:
        plot(json.loads(pathlib.Path(rest[0]).read_text()), int(rest[1]), int(rest[2]), rest[3])
