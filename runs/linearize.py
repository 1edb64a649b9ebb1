"""linearize.py FOLDER: what runs/linearize.sh measured in it, as a table and as FOLDER/linearize.csv, a row per
validation; step 0 is the converted model, and its own line the attention it replaces."""
import csv
import json
import pathlib
import sys


def last_json(path):
    return json.loads(path.read_text())


def main(folder):
    softmax = last_json(folder / "softmax.eval")["nats_per_token"]
    names = {path.stem: path.read_text().strip() for path in sorted(folder.glob("*.name"))}
    rows, table = [], [("attention", "", softmax, "", cost(folder / "softmax"))]
    for number, mixer in names.items():
        before = last_json(folder / f"{number}.before.eval")["nats_per_token"]
        after = {}
        for how, source in (("distilled", "teacher"), ("alone", "text alone")):
            rows.append({"mixer": mixer, "from": source, "step": 0, "minimised": "", "nats_per_token": before})
            for line in map(json.loads, (folder / f"{number}.{how}.jsonl").read_text().splitlines()):
                if "validation_loss" in line:
                    rows.append({"mixer": mixer, "from": source, "step": line["step"],
                                 "minimised": line.get("minimised", "text"), "nats_per_token": line["validation_loss"]})
            after[how] = last_json(folder / f"{number}.{how}.eval")["nats_per_token"]
        table.append((mixer, before, after["distilled"], after["alone"], cost(folder / f"{number}.distilled")))
    last = max(row["step"] for row in rows)
    for source in ("teacher", "text alone"):
        rows += [{"mixer": "attention", "from": source, "step": step, "minimised": "", "nats_per_token": softmax}
                 for step in (0, last)]
    with open(folder / "linearize.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows: {folder / 'linearize.csv'}\n\nnats per token of the validation text; a session")
    print(f"{'':34}{'converted':>10}{'distilled':>10}{'text alone':>11}{'state, KiB':>12}{'tokens/s':>10}")
    for mixer, before, distilled, alone, (state, speed) in table:
        cells = [f"{value:10.4f}" if value != "" else " " * 10 for value in (before, distilled, alone)]
        print(f"{mixer:34}{cells[0]}{cells[1]} {cells[2]}{state / 1024:12.1f}{speed:10.0f}")


def cost(stem):
    """Bytes of the state after the long text, and tokens/s of reading it."""
    return pathlib.Path(f"{stem}.state").stat().st_size, last_json(pathlib.Path(f"{stem}.long"))["tokens_per_second"]


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
