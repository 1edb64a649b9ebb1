"""The whole training step of a TTT-Linear language model: Lineal beside eager PyTorch, alternately, medians.

    bench/peers.py [--rounds 3] [--context 2048] [--threads N]

The peer below is written from the formulas of src/mixers/ttt.h in plain PyTorch operations, the way the public
PyTorch implementation computes them (a loop over inner batches, dual form). Both sides: forward, backward, clip,
AdamW; float32; the same sizes, threads and machine.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
C = 16  # tokens of an inner batch


def layer_norm(z, gamma, beta):
    return gamma * F.layer_norm(z, z.shape[-1:], eps=1e-6) + beta


class TTTLinear(nn.Module):
    """W_i = W_0 - s_i sum_{j<=i} eta_j k_j^T G_j; o_i = q_i + LN(q_i W_i + b_i)."""

    def __init__(self, D, H):
        super().__init__()
        self.H, self.K = H, D // H
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.W = nn.Parameter(torch.randn(H, self.K, self.K) * 0.02)
        self.b = nn.Parameter(torch.zeros(H, 1, self.K))
        self.rate = nn.Linear(D, H)
        self.place = nn.Parameter(torch.zeros(C))
        self.gamma, self.beta = nn.Parameter(torch.ones(H, 1, self.K)), nn.Parameter(torch.zeros(H, 1, self.K))
        self.post = nn.LayerNorm(D, eps=1e-6)

    def rope(self, x):  # [B, H, n, C, K], pairs interleaved, positions within the inner batch
        f = 10000.0 ** (-torch.arange(0, self.K, 2) / self.K)
        angle = torch.arange(C)[:, None] * f
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1).flatten(-2)

    def forward(self, x):
        B, T, D = x.shape
        split = lambda y: y.view(B, T // C, C, self.H, -1).permute(0, 3, 1, 2, 4)  # [B, H, n, C, K]
        q, k, v = self.rope(split(self.q(x))), self.rope(split(self.k(x))), split(self.v(x))
        eta = split(torch.sigmoid(self.rate(x)) / self.K)
        s = (1 / torch.arange(1, C + 1) + self.place).clamp_min(0)[:, None]
        W, b, out = self.W.expand(B, -1, -1, -1), self.b.expand(B, -1, -1, -1), []
        for Q, K, V, rate in zip(*(x.unbind(2) for x in (q, k, v, eta))):  # one backward for all, not one per index
            step = s * rate.transpose(-1, -2)  # [B, H, C, C]
            Z = K @ W + b
            mean, var = Z.mean(-1, keepdim=True), Z.var(-1, keepdim=True, unbiased=False)
            std = (var + 1e-6).sqrt()
            h = (Z - mean) / std
            g = (self.gamma * h + self.beta - (V - K)) * self.gamma
            G = (self.K * g - g.sum(-1, keepdim=True) - h * (g * h).sum(-1, keepdim=True)) / (self.K * std)
            lower = step.tril()
            z = Q @ W - (lower * (Q @ K.transpose(-1, -2))) @ G + b - lower @ G
            last = step[:, :, -1:].transpose(-1, -2)
            W, b = W - (last * K).transpose(-1, -2) @ G, b - (last * G).sum(-2, keepdim=True)
            out.append(Q + layer_norm(z, self.gamma, self.beta))
        y = torch.stack(out, 2).permute(0, 2, 3, 1, 4).reshape(B, T, D)
        return self.o(self.post(y))


class Block(nn.Module):
    def __init__(self, D, H, width):
        super().__init__()
        self.mix_norm, self.mix = nn.RMSNorm(D, eps=1e-6), TTTLinear(D, H)
        self.norm, self.gate = nn.RMSNorm(D, eps=1e-6), nn.Linear(D, width, bias=False)
        self.up, self.down = nn.Linear(D, width, bias=False), nn.Linear(width, D, bias=False)

    def forward(self, x):
        x = x + self.mix(self.mix_norm(x))
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self, D=256, L=4, H=4, width=704):
        super().__init__()
        self.embed, self.norm = nn.Embedding(256, D), nn.RMSNorm(D, eps=1e-6)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(D, H, width) for _ in range(L))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embed.weight.T


def peer_step(B, T):
    """A function that does one step and returns its seconds."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(256, (B, T + 1))

    def step():
        start = time.perf_counter()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - start

    return step, sum(p.numel() for p in model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of both sides in turn")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each side in a round")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    step, count = peer_step(args.batch, args.context)
    step()
    command = [str(ROOT / "build/lineal"), "bench", "model", "--layers", "ttt_linear*4", "--hidden-size", "256",
               "--batch-size", str(args.batch), "--context", str(args.context), "--steps", str(args.steps), "--json",
               "--threads", str(args.threads)]
    ours, peers = {"fused": [], "reference": []}, []
    for _ in range(args.rounds):
        for kernels, seconds in ours.items():
            run = subprocess.run(command + ["--kernels", kernels], check=True, capture_output=True, text=True)
            result = json.loads(run.stdout)
            seconds += result["seconds"]
        peers += [step() for _ in range(args.steps)]
    tokens = args.batch * args.context
    theirs = statistics.median(peers)
    print(f"training step, batch {args.batch} x context {args.context}, {args.threads} threads, float32, "
          f"medians of {len(peers)} steps each, alternating")
    for name, seconds, parameters in [(f"lineal, {kernels}", ours[kernels], result["parameters"]) for kernels in ours] + [
            ("eager PyTorch", peers, count)]:
        mine = statistics.median(seconds)
        print(f"{name:18} {mine:7.3f} s ({min(seconds):.3f} to {max(seconds):.3f})  {tokens / mine:8.0f} tokens/s  "
              f"{theirs / mine:6.2f} x  {parameters} parameters")


if __name__ == "__main__":
    main()
