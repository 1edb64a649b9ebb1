"""Small inputs for every operation of torch.ops.lineal, odd sizes, some with documents that start in the call."""
import torch


def of(name, **options):
    """(operator, arguments, keyword arguments) of the case."""
    operator = getattr(torch.ops.lineal, name).default
    arguments, keywords = CASES[name](torch.Generator().manual_seed(0))
    return operator, arguments, {**keywords, **options}


def randn(generator, *shape, scale=1.0, grad=True):
    return (scale * torch.randn(shape, generator=generator)).requires_grad_(grad)


def starts(B, T):
    """bool [B, T]: a document starts in every row, each at another token."""
    return torch.stack([torch.arange(T) == 2 + 3 * b for b in range(B)])


def ttt(shapes):
    def case(g, B=2, T=11, H=3, K=6, C=4):
        tokens = [randn(g, B, T, H, K) for _ in range(3)]
        initial = [randn(g, H, *shape(K), scale=0.1) for shape in shapes]
        W = [randn(g, B, H, *shape(K), scale=0.1) for shape in shapes]
        D = [randn(g, B, H, *shape(K), scale=0.1) for shape in shapes]
        eta = torch.rand(B, T, H, generator=g).requires_grad_()
        scale = (1 / torch.arange(1.0, C + 1)).requires_grad_()
        return (*tokens, eta, scale, initial, W, D, torch.tensor([3, 8])), {
            "gamma": randn(g, H, K), "beta": randn(g, H, K), "starts": starts(B, T)}
    return case


def linear_attention(g, B=2, T=19, H=3, K=5, V=7):
    return (randn(g, B, T, H, K), randn(g, B, T, H, K), randn(g, B, T, H, V), randn(g, B, H, K, V)), {
        "g": (-torch.rand(B, T, H, K, generator=g)).requires_grad_(), "starts": starts(B, T)}


def delta_rule(g, B=2, T=19, H=3, K=5, V=7):
    (q, k, v, S), keywords = linear_attention(g, B, T, H, K, V)
    return (q, torch.nn.functional.normalize(k.detach(), dim=3).requires_grad_(), v,
            torch.rand(B, T, H, generator=g).requires_grad_(), S), {"starts": keywords["starts"]}


def feature_attention(g, B=2, T=19, H=3, K=5, V=7, M=6):
    arguments = (randn(g, B, T, H, K), randn(g, B, T, H, K), randn(g, B, T, H, V), randn(g, M, K, grad=False),
                 randn(g, B, H, M, V), torch.tensor([True, False]))
    return arguments, {"peak": randn(g, B, H), "starts": starts(B, T), "scale": K**-0.25}


def selective_scan(g, B=2, T=13, D=6, N=5, G=2):
    delta = randn(g, B, T, D, scale=0.1)
    A = (-torch.rand(D, N, generator=g)).requires_grad_()
    return (randn(g, B, T, D), delta, A, randn(g, B, T, G, N), randn(g, B, T, G, N), randn(g, B, D, N)), {
        "D": randn(g, D), "z": randn(g, B, T, D), "bias": randn(g, D, scale=0.1), "starts": starts(B, T),
        "softplus": True}


def short_conv(g, B=2, T=9, D=6, J=4):
    return (randn(g, B, T, D), randn(g, D, 1, J), randn(g, D), randn(g, B, J - 1, D)), {
        "starts": starts(B, T), "silu": True}


def wkv(g, B=2, T=11, A=6):
    return (randn(g, B, T, A), randn(g, B, T, A), (-torch.rand(A, generator=g)).requires_grad_(), randn(g, A),
            randn(g, B, A), torch.rand(B, A, generator=g).add(1).requires_grad_(), randn(g, B, A)), {
                "starts": starts(B, T)}


def vq_attention(g, B=2, T=11, H=3, K=4, V=5, M=6, window=3, block=2):
    W = window + block - 1
    codebook = randn(g, H, M, K, grad=False)
    code = torch.randint(M, (B, T, H), generator=g)
    past_code = torch.randint(M, (B, W, H), generator=g)
    return (randn(g, B, T, H, K), randn(g, B, T, H, K), randn(g, B, T, H, K), randn(g, B, T, H, V), code, codebook,
            randn(g, window + 1, H, K), block, torch.tensor([9, 12]), randn(g, B, W, H, K), randn(g, B, W, H, V),
            past_code), {"count": torch.randint(1, 4, (B, H, M), generator=g), "mean": randn(g, B, H, M, V),
                         "starts": starts(B, T)}


def rope(g, B=2, T=5, H=3, K=6, P=9):
    angle = torch.rand(P, K, generator=g)
    return (randn(g, B, T, H, K), angle.cos(), angle.sin(), torch.randint(P, (B, T), generator=g)), {}


def token_loss(g, R=7, D=6, N=11):
    return (randn(g, R, D), randn(g, N, D), torch.randint(N, (R,), generator=g),
            torch.rand(R, generator=g)), {}


CASES = {
    "ttt_linear": ttt([lambda K: (K, K), lambda K: (1, K)]),
    "ttt_mlp": ttt([lambda K: (K, 4 * K), lambda K: (1, 4 * K), lambda K: (4 * K, K), lambda K: (1, K)]),
    "linear_attention": linear_attention,
    "delta_rule": delta_rule,
    "feature_attention": feature_attention,
    "feature_attention_in_documents": feature_attention,
    "selective_scan": selective_scan,
    "short_conv": short_conv,
    "wkv": wkv,
    "nearest_code": lambda g: ((randn(g, 2, 7, 3, 4), randn(g, 3, 6, 4, grad=False)), {}),
    "vq_attention": vq_attention,
    "rms_norm": lambda g: ((randn(g, 2, 5, 6), randn(g, 6)), {}),
    "add_rms_norm": lambda g: ((randn(g, 2, 5, 6), randn(g, 2, 5, 6), randn(g, 6)), {}),
    "rope": rope,
    "swiglu": lambda g: ((randn(g, 2, 5, 6), randn(g, 2, 5, 6)), {}),
    "token_loss": token_loss,
}
