"""Lineal beside its peers, in turn on the same machine, threads and numbers: medians and ratios.

    bench/peers.py [--only ROW ...] [--rounds 7] [--threads N] [--json]

Operations run in one process through torch.ops.lineal (build/liblineal_ops.so), whole models through build/lineal. The
peers are written from the formulas the way public implementations compute them (formulas.py, models.py; formulas_test.py
holds them to the same numbers), or come from pip into the Python that runs this. A peer that is not there is named with
what brings it. "x Lineal" is how many times as long a peer takes: the median of rounds, with the least and the most.
"""
import argparse
import json
import os
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402

import models  # noqa: E402
import operations  # noqa: E402
from timing import alternate, timed  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]


def operation(make, backward, **sizes):
    """A row of one operation: what, tokens, samples by side, and missing sides."""

    def row(args):
        case = make(**sizes)
        samples = {}
        for side, f in case.sides.items():
            if backward:
                samples[side] = timed(case.backward(side))
            else:
                samples[side] = timed(torch.no_grad()(f))
        yield case.what, case.tokens, samples, case.missing

    return row


def attention(args):
    for T in [64 << i for i in range(8)]:
        case = operations.attention(T)
        yield case.what, case.tokens, {s: timed(torch.no_grad()(f)) for s, f in case.sides.items()}, case.missing


def performer(args):
    for T in [2048 << i for i in range(5)]:
        case = operations.performer(T)
        yield case.what, case.tokens, {s: timed(torch.no_grad()(f)) for s, f in case.sides.items()}, case.missing


def ttt_model(args):
    B, T = 4, 2048
    model = models.TTTModel()
    samples = {"lineal": models.lineal_step(args.program, B, T, args.threads),
               "lineal bfloat16": models.lineal_step(args.program, B, T, args.threads, "bfloat16"),
               "eager PyTorch": models.training_step(model, model, B, T)}
    yield f"width 256, 4 layers, B {B} T {T}, {models.parameters(model)} parameters", B * T, samples, {}


def long_model(args):
    B, T = 1, 8192
    samples, missing = {"lineal": models.lineal_step(args.program, B, T, args.threads),
                        "lineal bfloat16": models.lineal_step(args.program, B, T, args.threads, "bfloat16")}, {}
    transformers = operations.peer("transformers")
    if transformers:
        model, logits = models.llama(transformers, T)
        samples["transformers Llama"] = models.training_step(model, logits, B, T)
        what = f"width 256, 4 layers, B {B} T {T}, Llama with {models.parameters(model)} parameters"
    else:
        missing["transformers Llama"] = operations.MISSING["transformers"]
        what = f"width 256, 4 layers, B {B} T {T}"
    yield what, B * T, samples, missing


ROWS = {
    "ttt_linear forward": operation(operations.ttt_linear, False, compiled=True),
    "ttt_linear both": operation(operations.ttt_linear, True, compiled=True),
    "ttt_mlp forward": operation(operations.ttt_mlp, False, compiled=True),
    "ttt_mlp both": operation(operations.ttt_mlp, True, compiled=True),
    "linear_attention forward": operation(operations.linear_attention, False),
    "linear_attention both": operation(operations.linear_attention, True),
    "delta_rule forward": operation(operations.delta_rule, False),
    "delta_rule both": operation(operations.delta_rule, True),
    "selective_scan forward": operation(operations.selective_scan, False),
    "selective_scan both": operation(operations.selective_scan, True),
    "ttt_linear against attention": attention,
    "performer against attention": performer,
    "ttt_linear model, a training step": ttt_model,
    "long context, a training step": long_model,
}


def measure(name, args):
    """One record per side; a side that is not there has `missing` instead of times."""
    for what, tokens, samples, missing in ROWS[name](args):
        for side, how in missing.items():
            yield {"row": name, "what": what, "side": side, "missing": how}
        for side, found in alternate(samples, args.rounds).items() if samples else ():
            yield {"row": name, "what": what, "side": side, "seconds": found.seconds,
                   "us_per_token": 1e6 * found.seconds / tokens, "beside": next(iter(samples)), "ratio": found.ratio,
                   "low": found.low, "high": found.high, "rounds": found.rounds}


def show(record, last):
    if (record["row"], record["what"]) != last:
        print(f"\n{record['row']}: {record['what']}")
    if "missing" in record:
        print(f"  {record['side']:20} not here: {record['missing']}", flush=True)
        return
    ratio = ""
    if record["side"] != record["beside"]:
        beside = "Lineal" if record["beside"] == "lineal" else record["beside"]
        ratio = f"{record['ratio']:8.2f} x {beside} ({record['low']:.2f} to {record['high']:.2f})"
    print(f"  {record['side']:20}{1e3 * record['seconds']:10.2f} ms{record['us_per_token']:9.3f} us/token{ratio}", flush=True)


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def arguments():
    rows = "\n".join(f"  {name}" for name in ROWS)
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"rows:\n{rows}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="ROW", help="rows whose names contain it; may be repeated")
    parser.add_argument("--rounds", type=positive, default=7, help="of all sides in turn")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of every side")
    parser.add_argument("--json", action="store_true", help="a list of records instead of the table")
    parser.add_argument("--program", default=str(ROOT / "build/lineal"))
    parser.add_argument("--library", default=str(ROOT / "build/liblineal_ops.so"))
    args = parser.parse_args()
    args.rows = [name for name in ROWS if not args.only or any(part in name for part in args.only)]
    if not args.rows:
        parser.error(f"no row has {' or '.join(args.only)} in its name; there are:\n{rows}")
    for path in (args.program, args.library):
        if not os.path.exists(path):
            parser.error(f"{path} is not there; 'cmake --build build' makes it")
    return args


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.ops.load_library(args.library)
    if not args.json:
        print(f"{args.threads} threads, float32 unless said otherwise, PyTorch {torch.__version__}; medians of {args.rounds} "
              "rounds; both: forward and backward")
    records, last = [], None
    for name in args.rows:
        for record in measure(name, args):
            records.append(record)
            if not args.json:
                show(record, last)
            last = record["row"], record["what"]
    if args.json:
        json.dump(records, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
