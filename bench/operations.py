"""Each operation with random inputs, and what computes it: Lineal's fused kernel and the peers, side by side.

A side is a function without arguments that returns o; "lineal" is missing where the library has no such operation.
"""
import dataclasses
import importlib
import math
from typing import Callable

import torch
from torch.nn import functional as F

import formulas

MISSING = {  # peers that pip brings, beside a PyTorch that is there
    "mambapy": "pip install --no-deps mambapy",
    "transformers": "pip install transformers",
}


@dataclasses.dataclass
class Case:
    what: str  # the sizes, in words
    tokens: int
    leaves: list  # what is differentiated for
    sides: dict[str, Callable[[], torch.Tensor]]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)  # a side that is not there, and what brings it

    def backward(self, side):
        """The same side with the gradients of all leaves; a loss is their weighted sum."""
        f = self.sides[side]
        with torch.no_grad():
            weights = torch.randn(f().shape, generator=torch.Generator().manual_seed(7))
        return lambda: torch.autograd.grad(f(), self.leaves, weights)


def peer(name):
    """The module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def lineal(name):
    """torch.ops.lineal.NAME, or None."""
    return getattr(torch.ops.lineal, name, None)


class Leaves:
    """Random tensors that ask for gradients."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.all = []

    def __call__(self, *shape, scale=1.0, make=lambda x: x):
        x = make(torch.randn(shape, generator=self.generator) * scale).requires_grad_()
        self.all.append(x)
        return x


def case(what, tokens, leaves, name, ours, peers, missing=None):
    sides = {"lineal": ours, **peers} if lineal(name) else peers
    missing = missing or {}
    if not lineal(name):
        missing["lineal"] = f"this liblineal_ops.so has no {name}"
    return Case(what, tokens, leaves, sides, missing)


def ttt(name, step, shapes, B, H, K, C, T, compiled):
    leaf = Leaves()
    q, k, v = (leaf(B, T, H, K) for _ in range(3))
    eta = leaf(B, T, H, make=lambda x: torch.sigmoid(x) / K)
    s = leaf(C, scale=0.0, make=lambda x: x + 1 / torch.arange(1, C + 1))
    gamma, beta = leaf(H, K, scale=0.1, make=lambda x: 1 + x), leaf(H, K, scale=0.1)
    initial = [leaf(H, *shape, scale=0.02) for shape in shapes]
    zeros = [torch.zeros(B, *w.shape) for w in initial]
    position = torch.zeros(B, dtype=torch.long)

    def ours():
        W = [w.expand(B, *w.shape) for w in initial]
        return lineal(name)(q, k, v, eta, s, initial, W, zeros, position, gamma=gamma, beta=beta)[0]

    def peer_with(step):
        return lambda: formulas.ttt(step, q, k, v, eta, s, gamma, beta, [w.expand(B, *w.shape) for w in initial])[0]

    peers = {"eager PyTorch": peer_with(step)}
    if compiled:
        peers["torch.compile"] = peer_with(torch.compile(step, dynamic=False))
    return case(f"B {B} H {H} K {K} C {C} T {T}", B * T, leaf.all, name, ours, peers)


def ttt_linear(B=1, H=12, K=64, C=16, T=2048, compiled=False):
    return ttt("ttt_linear", formulas.ttt_linear_step, [(K, K), (1, K)], B, H, K, C, T, compiled)


def ttt_mlp(B=1, H=12, K=64, C=16, T=2048, compiled=False):
    shapes = [(K, 4 * K), (1, 4 * K), (4 * K, K), (1, K)]
    return ttt("ttt_mlp", formulas.ttt_mlp_step, shapes, B, H, K, C, T, compiled)


def linear_attention(B=1, H=12, K=64, V=64, T=2048, C=64):
    leaf = Leaves()
    q, k, v, S = leaf(B, T, H, K), leaf(B, T, H, K, scale=1 / K), leaf(B, T, H, V), leaf(B, H, K, V)
    return case(f"B {B} H {H} K {K} T {T}", B * T, leaf.all, "linear_attention",
                lambda: lineal("linear_attention")(q, k, v, S)[0],
                {"eager PyTorch": lambda: formulas.linear_attention(q, k, v, S, C)[0]})


def delta_rule(B=1, H=12, K=64, V=64, T=2048, C=64):
    leaf = Leaves()
    q, v, S = leaf(B, T, H, K), leaf(B, T, H, V), leaf(B, H, K, V)
    k = leaf(B, T, H, K, make=lambda x: F.normalize(x, dim=-1))
    beta = leaf(B, T, H, make=torch.sigmoid)
    return case(f"B {B} H {H} K {K} T {T}", B * T, leaf.all, "delta_rule",
                lambda: lineal("delta_rule")(q, k, v, beta, S)[0],
                {"eager PyTorch": lambda: formulas.delta_rule(q, k, v, beta, S, C)[0]})


def selective_scan(B=1, D=512, N=16, T=2048):
    leaf = Leaves()
    u, dt = leaf(B, T, D), leaf(B, T, D, make=lambda x: 0.01 * torch.exp(x))
    A = leaf(D, N, scale=0.0, make=lambda x: x - torch.arange(1.0, N + 1))
    b, c = leaf(B, T, N), leaf(B, T, N)
    h = torch.zeros(B, D, N)
    peers = {"eager PyTorch": lambda: formulas.selective_scan(u, dt, A, b, c, h)[0]}
    missing = {}
    if peer("mambapy.pscan"):
        pscan = peer("mambapy.pscan").pscan
        peers["mambapy pscan"] = lambda: formulas.selective_scan_parallel(pscan, u, dt, A, b, c)
    else:
        missing["mambapy pscan"] = MISSING["mambapy"]
    return case(f"B {B} D {D} N {N} T {T}", B * T, leaf.all, "selective_scan",
                lambda: lineal("selective_scan")(u, dt, A, b.unsqueeze(2), c.unsqueeze(2), h)[0], peers, missing)


def attention(T, B=1, H=12, K=64, C=16):
    """ttt_linear beside softmax attention of the same heads; not the same numbers."""
    ttt_case = ttt_linear(B, H, K, C, T)
    leaf = Leaves()
    q, k, v = (leaf(B, H, T, K, scale=1 / math.sqrt(K)) for _ in range(3))
    return case(f"B {B} H {H} K {K} T {T}", B * T, leaf.all, "ttt_linear", ttt_case.sides["lineal"],
                {"SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)})


def performer(T, backward=False, B=1, H=8, K=64, M=256):
    """Attention through M positive features beside softmax attention of the same heads; not the same numbers."""
    leaf = Leaves()
    q, k, v = (leaf(B, T, H, K) for _ in range(3))
    w, S = torch.randn(M, K, generator=leaf.generator), torch.zeros(B, H, M, K + 1)
    fresh, peak = torch.ones(B, dtype=torch.bool), torch.zeros(B, H)

    def ours():
        v1 = torch.cat((v, torch.ones(B, T, H, 1)), 3)
        o = lineal("feature_attention")(q, k, v1, w, S, fresh, peak=peak, scale=K**-0.25)[0]
        return o[..., :K] / o[..., K:]

    def softmax():
        heads = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)

    return case(f"B {B} H {H} K {K} M {M} T {T}", B * T, leaf.all, "feature_attention", ours, {"SDPA": softmax})
