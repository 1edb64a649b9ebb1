"""Every fused operation as Python sees it, beside its formula in plain PyTorch: outputs and all gradients, in float32.

    bench/formulas_test.py liblineal_ops.so

Also holds the formulas that bench/peers.py times to the numbers that Lineal computes. Exit code 77: no PyTorch here.
"""
import sys

try:
    import torch
except ImportError as error:
    print(f"skipped: {sys.executable} has no PyTorch ({error})")
    sys.exit(77)

import formulas
import operations

FORWARD, GRADIENT = 1e-5, 1e-4  # relative RMS


def difference(x, y):
    return ((x - y).double().norm() / y.double().norm()).item()


def check(name, case):
    """What differs; the sides of a case agree on o and on the gradient of every leaf."""
    if "lineal" not in case.sides:
        return [f"{name}: {case.missing['lineal']}"]
    wrong = []
    with torch.no_grad():
        expected = case.sides["lineal"]()
    gradients = case.backward("lineal")()
    for side, f in case.sides.items():
        if side == "lineal":
            continue
        with torch.no_grad():
            found = [("o", difference(f(), expected), FORWARD)]
        for i, (x, y) in enumerate(zip(case.backward(side)(), gradients)):
            found.append((f"gradient {i} {list(y.shape)}", difference(x, y), GRADIENT))
        wrong += [f"{name}, {side}: {what} differs by {far:.1e}, expected {most:.0e}" for what, far, most in found
                  if not far <= most]
        print(f"{name}, {side}: {max(far for _, far, _ in found):.1e}")
    return wrong


def refusals():
    """What the library must refuse, with words from its message."""
    ops = torch.ops.lineal
    q, S = torch.zeros(1, 3, 2, 4), torch.zeros(1, 2, 4, 4)
    calls = [(lambda: ops.linear_attention(q.double(), q.double(), q.double(), S.double()), "expected Float or BFloat16"),
             (lambda: ops.delta_rule(q, q, q, torch.zeros(1, 3), S), "delta_rule: beta is [1, 3]"),
             (lambda: ops.ttt_linear(q, q, q, q[..., 0], q[0, :, 0, 0], [], [], [], torch.zeros(1)), "expected the inner")]
    wrong = []
    for call, words in calls:
        try:
            call()
            wrong.append(f"not refused: {words}")
        except RuntimeError as error:
            if words not in str(error):
                wrong.append(f"expected '{words}' in: {error}")
    return wrong


def main():
    torch.ops.load_library(sys.argv[1])
    wrong = check("ttt_linear", operations.ttt_linear(B=2, H=3, K=12, C=8, T=40))
    wrong += check("ttt_mlp", operations.ttt_mlp(B=2, H=3, K=12, C=8, T=40))
    wrong += check("linear_attention", operations.linear_attention(B=2, H=3, K=12, V=10, T=45, C=15))
    wrong += check("delta_rule", operations.delta_rule(B=2, H=3, K=12, V=10, T=45, C=15))
    wrong += check("selective_scan", operations.selective_scan(B=2, D=6, N=5, T=43))
    wrong += refusals()
    print("\n".join(wrong) if wrong else "all agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
