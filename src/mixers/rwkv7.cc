// RWKV-7: a recurrence that removes along one vector and writes along another.         (RWKV-7 "Goose", 2025, eq. 3-23)
//   initial  S_0 = 0                                                              [K, V] per head
//   update   S_t = diag(exp(g_t)) S_{t-1} - (eta_t kappa_t) (S_{t-1}^T kappa_t)^T + k_t v_t^T
//   output   o_t = S_t^T r_t;  y_t = W_o ((LN(o_t) + (r_t . (rho k_t)) v_t) gate_t)         the norm per head
//   views    r, w, k, v, a, g each read a mix of their own, x_t + mu (x_{t-1} - x_t):
//            g_t = -exp(-1/2) sigmoid(w0 + tanh(x W_1) W_2), eta = sigmoid(a0 + x A_1 A_2), gate = sigmoid(x G_1) G_2
//            kappa = xi k / |xi k| per head; what is written is k (1 + (eta - 1) alpha)
//   chunked  a chunk that starts at S; D, d as in linear_recurrence.cc, D'_ij = D_{i-1,j} and d'_i = d_{i-1} without
//   the
//            own decay; of b (a^T S) instead of -(eta kappa) (kappa^T S):
//            (I - A) U = (d' a) S + A_k V,  A_ij = sum_c a_ic D'_ijc b_jc and A_k,ij = sum_c a_ic D'_ijc k_jc for j < i
//            O = (d Q) S + P_b U + P_k V;  S' = d_C S + (D_C b)^T U + (D_C K)^T V
//   cost     O(T K (V + C)) time, K V state per head, and the last token
// A layer sees its own values only: the mix with the first layer's, which the paper adds, would need another interface.
#include "mixers/rwkv7.h"

#include <ATen/ATen.h>

#include <array>
#include <cmath>

#include "core/dims.h"
#include "core/error.h"
#include "mixers/chunks.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/probe.h"
#include "mixers/token_shift.h"

namespace lineal {
namespace {

constexpr double kUnitEps = 1e-12;
constexpr double kNormEps = 64e-5;

Dims check(const RankOneInput& in) {
  Dims dims("rwkv7");
  dims.check(in.q, "BTHK", "q");
  for (const auto& [name, x] : {std::pair("k", &in.k), {"a", &in.a}, {"b", &in.b}, {"g", &in.g}}) {
    dims.check(*x, "BTHK", name);
  }
  dims.check(in.v, "BTHV", "v");
  dims.check(in.S, "BHKV", "S");
  return dims;
}

}  // namespace

kernels::RecurrenceOutput rank_one_reference(const RankOneInput& in) {
  const Dims dims = check(in);
  Tensor S = in.S;
  std::vector<Tensor> o;
  for (int64_t t = 0; t < dims['T']; ++t) {
    const auto column = [&](const Tensor& x) { return x.select(1, t).unsqueeze(3); };  // [B, H, K, 1]
    const auto row = [&](const Tensor& x) { return x.select(1, t).unsqueeze(2); };     // [B, H, 1, K]
    S = restart(S, {in.starts}, t);
    S = column(in.g).exp() * S + column(in.b) * at::matmul(row(in.a), S) + column(in.k) * row(in.v);
    o.push_back(at::matmul(row(in.q), S).squeeze(2));
  }
  return {at::stack(o, 1), S};
}

kernels::RecurrenceOutput rank_one_chunked(const RankOneInput& in, int64_t chunk_size) {
  const Dims dims = check(in);
  const Chunks chunks(in.S.new_empty({dims['B'], dims['T']}), chunk_size, {in.starts});
  const Tensor Q = chunks.split(in.q), K = chunks.split(in.k), V = chunks.split(in.v);  // [B, H, n, C, K|V]
  const Tensor a = chunks.split(in.a), b = chunks.split(in.b);
  const Decays decays(chunks.split(in.g));
  const Tensor &D = decays.between, &d = decays.before;
  const auto through = decays.through(chunks.count());
  const int64_t last = d.size(3) - 1;
  const Tensor D_asked = at::cat({at::ones_like(D.slice(3, 0, 1)), D.slice(3, 0, last)}, 3);
  const Tensor d_asked = at::cat({at::ones_like(d.slice(3, 0, 1)), d.slice(3, 0, last)}, 3);

  const Tensor written = at::matmul(chunks.inside(scores(a, K, D_asked), /*strict=*/true), V);
  const Tensor right = at::cat({written, chunks.before(a * d_asked)}, -1);
  const Tensor A = -chunks.inside(scores(a, b, D_asked), /*strict=*/true);
  // U = R + W S; the diagonal of ones is implied.
  const Tensor solved = at::linalg_solve_triangular(A, right, /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  const auto R = solved.slice(-1, 0, dims['V']).unbind(2), W = solved.slice(-1, dims['V']).unbind(2);
  const auto added = at::matmul(chunks.after(K * decays.after()).transpose(-1, -2), V).unbind(2);
  const auto b_after = chunks.after(b * decays.after()).transpose(-1, -2).unbind(2);
  Tensor S = in.S;
  std::vector<Tensor> at_start, U;
  for (size_t i = 0; i < R.size(); ++i) {
    at_start.push_back(S);
    U.push_back(R[i] + at::matmul(W[i], S));  // [B, H, C, V]
    S = chunks.pass(S, static_cast<int64_t>(i)) * through[i] + added[i] + at::matmul(b_after[i], U.back());
  }
  const Tensor o = at::matmul(chunks.before(Q * d), at::stack(at_start, 2)) +
                   at::matmul(chunks.inside(scores(Q, b, D)), at::stack(U, 2)) +
                   at::matmul(chunks.inside(scores(Q, K, D)), V);
  return {chunks.join(o), S};
}

namespace {

struct RWKV7Config : Config {
  int64_t num_attention_heads = 4;
  int64_t decay_low_rank_dim = 64;
  int64_t a_low_rank_dim = 64;
  int64_t gate_low_rank_dim = 128;
  int64_t chunk_size = 16;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "heads, each with a state of its own"},
        {"decay_low_rank_dim", &decay_low_rank_dim, size_range(), "rank of the decays' projection"},
        {"a_low_rank_dim", &a_low_rank_dim, size_range(), "rank of the projection of the rates eta"},
        {"gate_low_rank_dim", &gate_low_rank_dim, size_range(), "rank of the gate's projection"},
        {"chunk_size", &chunk_size, size_range(), "tokens computed at once; changes no result"},
    };
  }
};

class RWKV7 : public Mixer {
 public:
  RWKV7(const RWKV7Config& config, int64_t D)
      : D_(D),
        H_(config.num_attention_heads),
        K_(head_size("rwkv7", D, config.num_attention_heads)),
        chunk_size_(config.chunk_size) {
    for (size_t i = 0; i < kViews.size(); ++i) mu_[i] = register_parameter(text("x_", kViews[i]), at::empty({D}));
    const auto vector = [&](const char* name) { return register_parameter(name, at::empty({D})); };
    const auto down = [&](const char* name, int64_t rank) { return register_parameter(name, at::empty({D, rank})); };
    const auto up = [&](const char* name, int64_t rank) { return register_parameter(name, at::empty({rank, D})); };
    w0_ = vector("w0"), w1_ = down("w1", config.decay_low_rank_dim), w2_ = up("w2", config.decay_low_rank_dim);
    a0_ = vector("a0"), a1_ = down("a1", config.a_low_rank_dim), a2_ = up("a2", config.a_low_rank_dim);
    g1_ = down("g1", config.gate_low_rank_dim), g2_ = up("g2", config.gate_low_rank_dim);
    k_k_ = vector("k_k"), k_a_ = vector("k_a");
    r_k_ = register_parameter("r_k", at::empty({H_, K_}));
    r_proj_ = register_module("receptance", linear(D, D));
    k_proj_ = register_module("key", linear(D, D));
    v_proj_ = register_module("value", linear(D, D));
    o_proj_ = register_module("output", linear(D, D));
    const auto norm = register_module("ln_x", std::make_shared<torch::nn::Module>());
    norm_weight_ = norm->register_parameter("weight", at::empty({D}));
    norm_bias_ = norm->register_parameter("bias", at::empty({D}));
  }

  /// Parts: S [B, H, K, K], shift [B, D] (the last token), position [B], tokens of the document read.
  State initial_state(int64_t B) const override {
    State state;
    state["S"] = at::zeros({B, H_, K_, K_}, state_options());
    state["shift"] = at::zeros({B, D_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("rwkv7", x, state, D_);
    const auto type = state_options().dtype().toScalarType();
    const auto heads = [&](const Tensor& y) { return y.to(type).unflatten(2, {H_, K_}); };
    const Tensor change = token_shift(x.to(type), state["shift"], segments) - x.to(type);
    state["position"] = segments.positions(state["position"], dims['T']).select(1, -1) + 1;
    const auto mixed = [&](size_t view) { return x.to(type) + change * mu_[view]; };  // [B, T, D]
    const auto low_rank = [](const Tensor& y, const Tensor& down, const Tensor& up, Tensor (*f)(const Tensor&)) {
      const Tensor inner = at::matmul(y, down);
      return at::matmul(f ? f(inner) : inner, up);
    };
    const Tensor r = heads(r_proj_(mixed(0))), k = heads(k_proj_(mixed(2))),
                 v = probed(probe, heads(v_proj_(mixed(3))));
    const Tensor decay = low_rank(mixed(1), w1_, w2_, at::tanh).to(type) + w0_;
    const Tensor eta = heads((low_rank(mixed(4), a1_, a2_, nullptr).to(type) + a0_).sigmoid());
    const Tensor gate = low_rank(mixed(5), g1_, g2_, at::sigmoid);
    Tensor y;
    {
      const FullPrecision guard(x);
      const auto per_head = [&](const Tensor& p) { return p.view({H_, K_}); };
      const Tensor removed = k * per_head(k_k_);
      const Tensor kappa = removed * (removed.square().sum(3, /*keepdim=*/true) + kUnitEps).rsqrt();
      const Tensor added = k * (1 + (eta - 1) * per_head(k_a_));
      const auto out = rank_one_chunked({.q = r,
                                         .k = added,
                                         .a = -kappa,
                                         .b = kappa * eta,
                                         .v = v,
                                         .g = -std::exp(-0.5) * heads(decay.sigmoid()),
                                         .S = state["S"],
                                         .starts = segments.starts},
                                        chunk_size_);
      state["S"] = out.S;
      if (probe) probe->outputs = out.o;
      const Tensor normed = at::layer_norm(out.o, {K_}, {}, {}, kNormEps).flatten(2) * norm_weight_ + norm_bias_;
      y = normed + ((r * added * r_k_).sum(3, /*keepdim=*/true) * v).flatten(2);
    }
    return o_proj_(y * gate);
  }

  /// Mixes and decays that differ from channel to channel, as the paper's appendix has them for a first layer.
  void reset_parameters(double deviation) override {
    at::NoGradGuard no_grad;
    for (auto* map : {&r_proj_, &k_proj_, &v_proj_, &o_proj_}) reset_linear(*map, deviation);
    const Tensor place = at::arange(D_, w0_.options().requires_grad(false)) / static_cast<double>(D_);  // [0, 1)
    for (size_t i = 0; i < kViews.size(); ++i) mu_[i].copy_(1 - place.pow(kMixPower[i]));
    w0_.copy_(-6.5 + 5 * place.pow(0.85));
    a0_.zero_(), k_k_.fill_(0.85), k_a_.fill_(1), r_k_.zero_();
    for (const Tensor& down : {w1_, a1_, g1_}) down.normal_(0, deviation);
    for (const Tensor& up : {w2_, a2_, g2_}) up.normal_(0, deviation);
    norm_weight_.fill_(1), norm_bias_.zero_();
  }

 private:
  static constexpr std::array kViews = {'r', 'w', 'k', 'v', 'a', 'g'};
  static constexpr std::array kMixPower = {0.2, 0.9, 0.7, 0.7, 0.9, 0.2};

  int64_t D_, H_, K_, chunk_size_;
  std::array<Tensor, kViews.size()> mu_;
  Tensor w0_, w1_, w2_, a0_, a1_, a2_, g1_, g2_, k_k_, k_a_, r_k_, norm_weight_, norm_bias_;
  LinearMap r_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
};

}  // namespace

extern const MixerSpec rwkv7_spec;
const MixerSpec rwkv7_spec = {
    .name = "rwkv7",
    .help = "removes along one vector and writes along another (RWKV-7 \"Goose\", 2025)",
    .config = make_config<RWKV7Config>,
    .make = make_mixer<RWKV7, RWKV7Config>,
};

}  // namespace lineal
