"""The peers' operations in plain PyTorch, from the formulas of src/mixers, the way public implementations compute them.

Tensors are [B, T, H, K] as Lineal takes them; T is a multiple of the chunk. Everything is differentiable.
"""
import torch
from torch.nn import functional as F

EPS = 1e-6


def blocks(x, C):
    """[B, T, H, ...] -> T/C tensors [B, H, C, ...], each contiguous."""
    x = x.unflatten(1, (-1, C)).movedim(1, 0).transpose(2, 3).contiguous()
    return x.unbind(0)  # one backward for all, not one per index


def tokens(blocks_):
    """Inverse of `blocks`."""
    return torch.stack(blocks_).transpose(2, 3).movedim(0, 1).flatten(1, 2)


def norm(z, gamma, beta):
    return gamma * F.layer_norm(z, z.shape[-1:], eps=EPS) + beta


def norm_loss_gradient(Z, target, gamma, beta):
    """d 1/2 |LN(Z) - target|^2 / dZ."""
    K = Z.shape[-1]
    mean, var = Z.mean(-1, keepdim=True), Z.var(-1, keepdim=True, unbiased=False)
    std = (var + EPS).sqrt()
    h = (Z - mean) / std
    g = (gamma * h + beta - target) * gamma
    return (K * g - g.sum(-1, keepdim=True) - h * (g * h).sum(-1, keepdim=True)) / (K * std)


def ttt_linear_step(Q, K, V, eta, s, gamma, beta, W, b):
    """One inner batch in the dual form: Q, K, V [B, H, C, K], eta [B, H, C], s [C, 1] -> o and the next W, b."""
    step = s * eta.unsqueeze(-2)  # [B, H, C, C]
    G = norm_loss_gradient(K @ W + b, V - K, gamma, beta)
    lower = step.tril()
    z = Q @ W + b - (lower * (Q @ K.transpose(-1, -2))) @ G - lower @ G
    last = step[:, :, -1:].transpose(-1, -2)
    W, b = W - (last * K).transpose(-1, -2) @ G, b - (last * G).sum(-2, keepdim=True)
    return Q + norm(z, gamma, beta), W, b


def gelu_gradient(x):
    """Of the tanh form."""
    t = torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
    return 0.5 * x * ((1 - t * t) * (0.79788456 + 0.1070322243 * x * x)) + 0.5 * (1 + t)


def ttt_mlp_step(Q, K, V, eta, s, gamma, beta, W1, b1, W2, b2):
    step = s * eta.unsqueeze(-2)
    Z1 = K @ W1 + b1
    X2 = F.gelu(Z1, approximate="tanh")
    G2 = norm_loss_gradient(X2 @ W2 + b2, V - K, gamma, beta)
    G1 = G2 @ W2.transpose(-1, -2) * gelu_gradient(Z1)
    lower = step.tril()
    u = Q @ W1 + b1 - (lower * (Q @ K.transpose(-1, -2))) @ G1 - lower @ G1
    a = F.gelu(u, approximate="tanh")
    z = a @ W2 + b2 - (lower * (a @ X2.transpose(-1, -2))) @ G2 - lower @ G2
    last = step[:, :, -1:].transpose(-1, -2)
    W1, b1 = W1 - (last * K).transpose(-1, -2) @ G1, b1 - (last * G1).sum(-2, keepdim=True)
    W2, b2 = W2 - (last * X2).transpose(-1, -2) @ G2, b2 - (last * G2).sum(-2, keepdim=True)
    return Q + norm(z, gamma, beta), W1, b1, W2, b2


def ttt(step, q, k, v, eta, s, gamma, beta, weights):
    """The inner loop over all inner batches: weights [B, H, ...] -> o and the final weights."""
    C, out = len(s), []
    gamma, beta, s = gamma.unsqueeze(1), beta.unsqueeze(1), s.unsqueeze(1)
    for Q, K, V, rate in zip(*(blocks(x, C) for x in (q, k, v, eta))):
        o, *weights = step(Q, K, V, rate, s, gamma, beta, *weights)
        out.append(o)
    return tokens(out), weights


def chunks(x, C):
    """[B, T, H, ...] -> [B, H, T/C, C, ...]."""
    return x.unflatten(1, (-1, C)).movedim(3, 1).contiguous()


def linear_attention(q, k, v, S, C=64):
    """S_t = S_{t-1} + k_t v_t^T, o_t = S_t^T q_t; every chunk at once."""
    Q, K, V = (chunks(x, C) for x in (q, k, v))
    sums = torch.cat((S.unsqueeze(2), K.transpose(-1, -2) @ V), 2).cumsum(2)  # the state at every chunk's start
    o = (Q @ K.transpose(-1, -2)).tril() @ V + Q @ sums[:, :, :-1]
    return o.movedim(1, 3).flatten(1, 2), sums[:, :, -1]


def delta_rule(q, k, v, beta, S, C=64):
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T, o_t = S_t^T q_t; the WY form, chunks one after another."""
    Q, K, V, b = (chunks(x, C) for x in (q, k, v, beta.unsqueeze(-1)))
    bK = b * K
    A = (bK @ K.transpose(-1, -2)).tril(-1)
    U, R = torch.linalg.solve_triangular(A, torch.cat((b * V, bK), -1), upper=False,
                                         unitriangular=True).split((V.shape[-1], K.shape[-1]), -1)
    P = (Q @ K.transpose(-1, -2)).tril()
    out = []
    for Q_n, KT_n, U_n, R_n, P_n in zip(*(x.unbind(2) for x in (Q, K.transpose(-1, -2), U, R, P))):
        u = U_n - R_n @ S
        out.append(Q_n @ S + P_n @ u)
        S = S + KT_n @ u
    return torch.stack(out, 2).movedim(1, 3).flatten(1, 2), S


def selective_scan(u, dt, A, B, C, h):
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = C_t . h_t, token by token; u, dt [B, T, D], A [D, N], B, C [B, T, N]."""
    out = []
    for u_t, dt_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, dt, B, C))):
        h = torch.exp(dt_t.unsqueeze(-1) * A) * h + (dt_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        out.append((h @ C_t.unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, 1), h


def selective_scan_parallel(pscan, u, dt, A, B, C):
    """The same from h = 0 with mambapy's parallel scan over [B, T, D, N]; y alone."""
    decay = torch.exp(dt.unsqueeze(-1) * A)
    h = pscan(decay, (dt * u).unsqueeze(-1) * B.unsqueeze(2))
    return (h @ C.unsqueeze(-1)).squeeze(-1)
