"""Whole language models of the peers, and their training step: forward, backward, clip, AdamW; float32."""
import json
import pathlib
import statistics
import subprocess
import time

import torch
from torch import nn
from torch.nn import functional as F

import formulas

ROOT = pathlib.Path(__file__).parents[1]
C = 16  # tokens of an inner batch


class TTTLinear(nn.Module):
    """The layer of src/mixers/ttt.h; W_i = W_0 - s_i sum_{j<=i} eta_j k_j^T G_j, o_i = q_i + LN(q_i W_i + b_i)."""

    def __init__(self, D, H):
        super().__init__()
        self.H, self.K = H, D // H
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.W = nn.Parameter(torch.randn(H, self.K, self.K) * 0.02)
        self.b = nn.Parameter(torch.zeros(H, 1, self.K))
        self.rate = nn.Linear(D, H)
        self.place = nn.Parameter(torch.zeros(C))
        self.gamma, self.beta = nn.Parameter(torch.ones(H, self.K)), nn.Parameter(torch.zeros(H, self.K))
        self.post = nn.LayerNorm(D, eps=1e-6)

    def rope(self, x):  # [B, T, H, K], pairs interleaved, positions within the inner batch
        f = 10000.0 ** (-torch.arange(0, self.K, 2) / self.K)
        angle = ((torch.arange(x.shape[1]) % C)[:, None] * f).unsqueeze(1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1).flatten(-2)

    def forward(self, x):
        q, k, v = (f(x).unflatten(2, (self.H, self.K)) for f in (self.q, self.k, self.v))
        eta = torch.sigmoid(self.rate(x)) / self.K
        s = (1 / torch.arange(1, C + 1) + self.place).clamp_min(0)
        weights = [w.expand(x.shape[0], -1, -1, -1) for w in (self.W, self.b)]
        y, _ = formulas.ttt(formulas.ttt_linear_step, self.rope(q), self.rope(k), v, eta, s, self.gamma, self.beta, weights)
        return self.o(self.post(y.flatten(2)))


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


class TTTModel(nn.Module):
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


def llama(transformers, T, D=256, L=4, H=4, width=704):
    """tokens -> logits of transformers' Llama of that size, with torch's scaled_dot_product_attention."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=D, intermediate_size=width, num_hidden_layers=L, num_attention_heads=H,
        num_key_value_heads=H, max_position_embeddings=T, tie_word_embeddings=True, use_cache=False,
        attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config)
    return model, lambda tokens: model(tokens).logits


def training_step(model, logits, B, T):
    """A sample: the seconds of one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(256, (B, T + 1), generator=torch.Generator().manual_seed(0))

    def step():
        start = time.perf_counter()
        loss = F.cross_entropy(logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - start

    step()
    return step


def lineal_step(program, B, T, threads, precision="float32", steps=2):
    """A sample: the median step of a run of `lineal bench model`, the fused kernels or an error."""
    command = [program, "bench", "model", "--layers", "ttt_linear*4", "--hidden-size", "256", "--intermediate-size", "704",
               "--batch-size", str(B), "--context", str(T), "--steps", str(steps), "--precision", precision, "--json",
               "--kernels", "fused", "--threads", str(threads)]

    def step():
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            raise SystemExit(f"peers: {' '.join(command)}\n{run.stderr}")
        return statistics.median(json.loads(run.stdout)["seconds"])

    return step


def parameters(model):
    return sum(p.numel() for p in model.parameters())
