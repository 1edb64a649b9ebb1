"""Checks that the includes of src/ follow the arrows between its folders; one line per violation.

commands -> serve, interop, bench -> train, eval, generate -> objectives -> backbones -> mixers -> kernels -> core;
mixers -> positions -> kernels; data -> core; objectives see data/batch.h only. Tests may also use testing/.
`--self-test` checks that the checker refuses what it should.
"""
import pathlib
import re
import sys
import tempfile

CORE = {"core"}
MIXERS = CORE | {"kernels", "positions"}
BACKBONES = MIXERS | {"mixers"}
OBJECTIVES = BACKBONES | {"backbones"}
TRAIN = OBJECTIVES | {"objectives", "data"}
SERVE = TRAIN | {"train", "eval", "generate"}
ALLOWED = {
    "core": set(), "kernels": CORE, "positions": CORE | {"kernels"}, "data": CORE, "mixers": MIXERS, "backbones": BACKBONES,
    "objectives": OBJECTIVES, "train": TRAIN, "eval": TRAIN, "generate": TRAIN, "serve": SERVE, "interop": SERVE,
    "bench": SERVE, "commands": SERVE | {"serve", "interop", "bench"},
}
ANYTHING = {"registry.cc", "main.cc", "precompiled.h"}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')


def violation(path, target):
    """Why the file src/path may not include "target", or None."""
    folder = path.parts[0]
    to = target.split("/")[0]
    if target == "torch/torch.h":
        return "costs 22 s of compilation in every file; include ATen/ or torch/nn/modules/"
    if path.name in ANYTHING and len(path.parts) == 1 or folder == "testing":
        return None
    if folder not in ALLOWED:
        return f"the folder {folder} has no layer; give it one in tools/check_layers.py"
    if to not in ALLOWED and to != "testing":
        return None
    if to == "testing":
        return None if path.stem.endswith("_test") else "only tests use testing/"
    if to == folder or to in ALLOWED[folder] or (folder == "objectives" and target == "data/batch.h"):
        return None
    return f"{folder} may include {', '.join(sorted(ALLOWED[folder])) or 'nothing'}"


def violations(src):
    found = []
    for path in sorted(p for p in src.rglob("*") if p.suffix in {".cc", ".h", ".cu", ".inc"}):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if match:
                reason = violation(path.relative_to(src), match[2])
                if reason:
                    found.append(f"src/{path.relative_to(src)}:{number}: includes {match[2]}: {reason}")
    return found


def self_test():
    good = [("mixers/a.cc", "core/error.h"), ("mixers/a.cc", "positions/rope.h"), ("registry.cc", "commands/command.h"),
            ("objectives/a.cc", "data/batch.h"), ("core/a_test.cc", "testing/testing.h"), ("eval/a.cc", "data/split.h"),
            ("interop/a.cc", "generate/session.h"), ("core/a.cc", "ATen/ATen.h")]
    bad = [("core/a.cc", "mixers/mixer.h"), ("mixers/a.cc", "backbones/block.h"), ("objectives/a.cc", "data/split.h"),
           ("data/a.h", "mixers/mixer.h"), ("core/a.cc", "testing/testing.h"), ("train/a.cc", "eval/loss.h"),
           ("kernels/a.cu", "positions/rope.h"), ("novel/a.cc", "core/error.h"), ("main.cc", "torch/torch.h")]
    wrong = []
    for cases, expected in ((good, 0), (bad, 1)):
        for name, target in cases:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.write_text(f'// a comment\n#include "{target}"\n')
                if len(violations(pathlib.Path(folder))) != expected:
                    wrong.append(f"{name} including {target}: expected {expected} violations")
    return wrong


if __name__ == "__main__":
    lines = self_test() if "--self-test" in sys.argv else violations(pathlib.Path(__file__).parents[1] / "src")
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(1 if lines else 0)
