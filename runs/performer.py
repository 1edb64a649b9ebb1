"""What the scripts runs/performer_*.sh do beside calling lineal: CSV files, and the paper's shapes beside what
came out. Every command is described by its function."""
import collections
import csv
import json
import math
import pathlib
import statistics
import subprocess
import sys


def write_csv(path, rows, append=False):
    new = not append or not pathlib.Path(path).exists()
    with open(path, "w" if new else "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows: {path}")


def verdict(paper, found):
    print(f"  paper: {paper}\n  here:  {found}")


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def slope(points):
    """Of the logarithms, by least squares."""
    x, y = zip(*((math.log(a), math.log(b)) for a, b in points))
    a, b = statistics.mean(x), statistics.mean(y)
    return sum((u - a) * (v - b) for u, v in zip(x, y)) / sum((u - a) ** 2 for u in x)


def approximation(result, table):
    """approximation BENCH.json CSV: its rows, added to those of other inputs."""
    found = json.loads(pathlib.Path(result).read_text())
    inputs = pathlib.Path(result).stem
    write_csv(table, [{"inputs": inputs, "features": f"{row['feature_map']} {row['projection']}", **row} for row in found],
              append=True)
    error = {(row["feature_map"], row["projection"], row["num_features"]):
             math.nan if row["squared_error"] is None else row["squared_error"] for row in found}
    maps, projections, features = ([*dict.fromkeys(key[i] for key in error)] for i in range(3))
    orthogonal = [name for name in projections if name != "iid"]

    def print_table():
        print("squared error".ljust(20) + "".join(f"{m:>11}" for m in features))
        for f in maps:
            for p in projections:
                print(f"{f} {p}".ljust(20) + "".join(f"{error[f, p, m]:11.3g}" for m in features))

    def not_below(cells):
        cells = list(cells)
        wrong = [what for what, less, more in cells if not less < more]
        return f"in {len(cells) - len(wrong)} of {len(cells)} cells" + (f"; not for {', '.join(wrong)}" if wrong else "")

    print_table()
    for f in maps:
        verdict(f"{f}: orthogonal rows err less than iid for every M",
                not_below((f"{p} M={m}", error[f, p, m], error[f, "iid", m]) for p in orthogonal for m in features))
    verdict("positive features err less than trig for every M",
            not_below((f"{p} M={m}", error["positive", p, m], error["trig", p, m]) for p in projections for m in features))
    verdict("squared errors fall as 1/M: slope -1",
            ", ".join(f"{f} {p} {slope([(m, error[f, p, m]) for m in features]):.2f}" for f in maps for p in projections))


def layers(table, *results):
    """layers CSV NETWORK-M-SEED.json...: mean and deviation over seeds of the error after each block."""
    groups = collections.defaultdict(list)
    for result in map(pathlib.Path, results):
        network, m, _ = result.stem.split("-")
        for row in json.loads(result.read_text()):
            groups[network, int(m), row["block"]].append(row)
    rows = []
    for (network, m, block), found in sorted(groups.items()):
        errors, alone = ([row[key] for row in found] for key in ("propagated", "alone"))
        rows.append({"network": network, "num_features": m, "block": block, "error": statistics.mean(errors),
                     "deviation": spread(errors), "alone": statistics.mean(alone), "alone_deviation": spread(alone)})
    write_csv(table, rows)
    last = max(row["block"] for row in rows)
    print("error of hidden states   M" + "".join(f"   block {block}" for block in range(1, last + 1)))
    for network in ("random", "trained"):
        for m in sorted({row["num_features"] for row in rows}):
            mine = [row for row in rows if (row["network"], row["num_features"]) == (network, m)]
            print(f"{network:20}{m:>6}" + "".join(f"{row['error']:10.4f}" for row in mine))
    for network in ("random", "trained"):
        ends = {(row["num_features"], row["block"]): row["error"] for row in rows if row["network"] == network}
        features = sorted({m for m, _ in ends})
        deepest = max(block for _, block in ends)
        grow = ", ".join(f"x{ends[m, deepest] / ends[m, 1]:.2f} (M={m})" for m in features)
        verdict(f"{network} network: errors grow with the layers", f"block {deepest} against block 1: {grow}")
        verdict(f"{network} network: and shrink with M", f"after block {deepest}: M^{slope([(m, ends[m, deepest]) for m in features]):.2f}")


def layers_of(model):
    """layers_of MODEL: how many there are."""
    path = pathlib.Path(model)
    steps = sorted((path / "checkpoints").glob("step-*"), key=lambda p: int(p.name.split("-")[1]))
    config = json.loads(((steps[-1] if steps else path) / "config.json").read_text())
    print(len(config["layers"]))


def lines(path):
    """Of JSON; what else a file holds is passed over."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def what_went_wrong(path):
    text = path.read_text().strip().splitlines() if path.exists() else []
    return next((line.removeprefix("lineal: ") for line in text if line.startswith("lineal: ")), "")


def transfer(folder, steps, tune, *models):
    """transfer FOLDER STEPS TUNE MODELS: tables of losses and accuracies, at once and after training on."""
    folder, steps, tune = pathlib.Path(folder), int(steps), int(tune)
    losses = {name: [line for line in lines(folder / f"{name}.jsonl") if "validation_loss" in line]
              for name in (*models, "softmax", "scratch")}

    def measured(name):
        found = lines(folder / name)
        return found[0] if found else {}

    rows = []
    for name in (*models, "scratch", "softmax"):
        at_once, after = measured(f"{name}.at_once"), measured(f"{name}.measured")
        wrong = what_went_wrong(folder / f"{name}.error") or what_went_wrong(folder / f"{name}.at_once.error")
        rows.append({"model": name, "nats_at_once": at_once.get("nats_per_token", ""), "accuracy_at_once": at_once.get("accuracy", ""),
                     "nats": after.get("nats_per_token", ""), "accuracy": after.get("accuracy", ""), "note": wrong})
    write_csv(folder / "transfer.csv", rows)
    curves = [{"model": name, "step": line["step"], "validation_loss": line["validation_loss"]}
              for name in (*models, "scratch") for line in losses[name]]
    write_csv(folder / "curves.csv", curves)

    number = lambda value, form: f"{value:{form}}" if value != "" else "-"
    print(f"{'model':20}{'nats at once':>14}{'accuracy':>10}{'nats after':>12}{'accuracy':>10}")
    for row in rows:
        print(f"{row['model']:20}{number(row['nats_at_once'], '14.4f'):>14}{number(row['accuracy_at_once'], '10.3f'):>10}"
              f"{number(row['nats'], '12.4f'):>12}{number(row['accuracy'], '10.3f'):>10}  {row['note']}")
    by_name = {row["model"]: row for row in rows}
    goal = losses["softmax"][-1]["validation_loss"]
    for name in models:
        if name == "attention" or not name.startswith(("positive", "SMREG")):
            continue
        back = next((line["step"] for line in losses[name] if line["validation_loss"] <= 1.02 * goal), None)
        verdict(f"{name}: an accuracy above none at once, softmax's within a small fraction of its steps",
                f"{number(by_name[name]['accuracy_at_once'], '.3f')} at once; within 2 % of softmax's loss after "
                + (f"{back} steps of {steps}, {back / steps:.0%}" if back else f"more than {tune} of {steps} steps"))
    ends = {name: found[-1]["validation_loss"] for name, found in losses.items() if found}
    if {"positive", "positive, redrawn"} <= ends.keys():
        verdict("redrawn features end below features that stay",
                f"{ends['positive, redrawn']:.4f} redrawn, {ends['positive']:.4f} not")
    trig = [f"{name}: " + (by_name[name]["note"] or f"{ends.get(name, math.nan):.4f}") for name in models
            if name.startswith("trig")]
    verdict("trigonometric features are unstable", "; ".join(trig))


def entropy_of_frequencies(train, validation):
    """Nats per byte of a model that knows how often each byte occurs."""
    count = lambda folder: collections.Counter(b"".join(p.read_bytes() for p in pathlib.Path(folder).iterdir()))
    known, asked = count(train), count(validation)
    total = sum(known.values()) + 256
    return -sum(n * math.log((known[byte] + 1) / total) for byte, n in asked.items()) / sum(asked.values())


def kernels(folder):
    """kernels FOLDER: a table of validation losses."""
    folder = pathlib.Path(folder)
    found, wrong = collections.defaultdict(list), {}
    for run in sorted(folder.glob("*.jsonl")):
        name = run.stem.rsplit(".", 1)[0]
        found[name] += [line["nats_per_token"] for line in lines(run.with_suffix(".json"))]
        error = what_went_wrong(run.with_suffix(".error"))
        if error:
            wrong[name] = error
    rows = []
    for name, losses in found.items():
        kernel, renormalised = name.split(",")
        rows.append({"kernel": kernel, "renormalisation": "on" if renormalised == "true" else "off",
                     "nats_per_byte": statistics.mean(losses) if losses else "", "deviation": spread(losses),
                     "note": wrong.get(name, "")})
    rows.append({"kernel": "frequencies", "renormalisation": "off", "deviation": 0, "note": "",
                 "nats_per_byte": entropy_of_frequencies(folder / "text/train", folder / "text/validation")})
    rows.sort(key=lambda row: (row["nats_per_byte"] == "", row["nats_per_byte"]))
    write_csv(folder / "kernels.csv", rows)
    for row in rows:
        loss = f"{row['nats_per_byte']:.4f}" if row["nats_per_byte"] != "" else "-"
        print(f"  {row['kernel']:18}{row['renormalisation']:5}{loss:>8}  {row['note']}")
    loss = {(row["kernel"], row["renormalisation"]): row["nats_per_byte"] for row in rows if row["nats_per_byte"] != ""}
    general = {key: value for key, value in loss.items() if key[0] not in ("softmax", "softmax features", "no attention", "frequencies")}
    if general:
        best = min(general, key=general.get)
        verdict("relu with renormalisation is the best kernel, below softmax's features",
                f"{best[0]}, renormalisation {best[1]}, {general[best]:.4f}; relu {loss.get(('relu', 'on'), math.nan):.4f}, "
                f"softmax's features {loss.get(('softmax features', 'on'), math.nan):.4f}")
    both = [kernel for kernel, on in general if on == "on" and (kernel, "off") in general]
    helps = [kernel for kernel in both if loss[kernel, "on"] < loss[kernel, "off"]]
    verdict("renormalisation helps", f"{len(helps)} of {len(both)} kernels: {', '.join(helps) or 'none'}")


def speed(lineal, table, lengths, sizes, steps, budget, *more):
    """speed LINEAL CSV LENGTHS SIZES STEPS BUDGET [FLAGS]: measures, in the order of the lengths."""
    budget, steps = float(budget), int(steps)
    rows = []
    for size in sizes.split():
        heads, count, ff, width = size.split(",")
        plans = {"performer": f"performer(num_attention_heads={heads})", "attention": f"attention(num_attention_heads={heads})",
                 "returns V": "identity"}
        print(f"heads {heads}, layers {count}, ff {ff}, width {width}: seconds of a pass, {steps} timed\n"
              f"  {'mixer':12}{'length':>8}{'forward':>11}{'backward':>11}{'peak MiB':>10}", flush=True)
        for mixer, plan in plans.items():
            before = []  # (length, seconds of a step, of a forward pass)
            for length in map(int, lengths.split(",")):
                row = {"size": size, "mixer": mixer, "length": length, "seconds_forward": "", "seconds_backward": "",
                       "seconds_step": "", "peak_mib": "", "note": ""}
                rows.append(row)
                if before:
                    power = 2.0 if mixer == "attention" else 1.2  # of the length, until there are two times
                    if len(before) > 1:
                        power = min(2.2, max(1.0, slope([(a, b) for a, b, _ in before[-2:]])))
                    grown = (length / before[-1][0]) ** power
                    expected = (steps + 1) * grown * (before[-1][1] + before[-1][2])
                    if expected > budget:
                        row["note"] = f"left out: about {expected:.0f} s; BUDGET={expected + 1:.0f} admits it"
                if not row["note"]:
                    command = [lineal, "bench", "model", "--layers", f"{plan}*{count}", "--hidden-size", width,
                               "--intermediate-size", ff, "--batch-size", "1", "--context", str(length), "--steps",
                               str(steps), "--json", *more]
                    run = subprocess.run(command, capture_output=True, text=True)
                    if run.returncode != 0:
                        row["note"] = run.stderr.strip().removeprefix("lineal: ")
                    else:
                        found = json.loads(run.stdout)
                        step, forward = (statistics.median(found[key]) for key in ("seconds", "seconds_forward"))
                        before.append((length, step, forward))
                        row.update(seconds_forward=forward, seconds_backward=step - forward, seconds_step=step,
                                   peak_mib=round(found["peak_bytes"] / 2**20))
                cells = [f"{row[key]:11.4f}" if row[key] != "" else f"{'-':>11}" for key in ("seconds_forward", "seconds_backward")]
                print(f"  {mixer:12}{length:>8}{''.join(cells)}{row['peak_mib'] or '-':>10}  {row['note']}", flush=True)
    write_csv(table, rows)
    timed = {(row["size"], row["mixer"], row["length"]): row["seconds_step"] for row in rows if row["seconds_step"] != ""}
    for size in sizes.split():
        slopes = []
        for mixer in ("performer", "attention", "returns V"):
            points = [(key[2], value) for key, value in timed.items() if key[:2] == (size, mixer)][-3:]
            slopes.append(f"{mixer} L^{slope(points):.2f}" if len(points) > 1 else f"{mixer} -")
        verdict(f"{size}: attention's time grows as L^2, Performer's as L, near that of layers that return V", ", ".join(slopes))
        common = [key[2] for key in timed if key[:2] == (size, "performer") and (size, "attention", key[2]) in timed
                  and (size, "returns V", key[2]) in timed]
        for length in common[-1:]:
            mine = timed[size, "performer", length]
            print(f"  at {length}: attention / Performer {timed[size, 'attention', length] / mine:.2f}, "
                  f"returns V / Performer {timed[size, 'returns V', length] / mine:.2f}")


if __name__ == "__main__":
    commands = (approximation, layers, layers_of, transfer, kernels, speed)
    {f.__name__: f for f in commands}[sys.argv[1]](*sys.argv[2:])
