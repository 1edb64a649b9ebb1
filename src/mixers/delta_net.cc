// DeltaNet: linear attention that corrects instead of adds.
//                                    (Parallelizing Linear Transformers with the Delta Rule, 2024, eq. 2, 8-11)
//   initial  S_0 = 0                                                      [K, V]
//   update   S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
//   output   o_t = K^{-1/2} S_t^T q_t
//   chunked  S_t = S + sum_{j<=t} k_j u_j^T for a chunk that starts at S, where u_j = beta_j (v_j - S_{j-1}^T k_j):
//            (I + A) U = diag(beta) (V - K S),  A_ij = beta_i k_i . k_j for j < i
//            O = Q S + (Q K^T . mask) U;  S' = S + K^T U
//   cost     O(T K (V + C)) time, K V state per head
// q and k are projections, through a short convolution and silu, of length 1; beta = sigmoid(W_b x), one per head.
#include "mixers/delta_net.h"

#include <ATen/ATen.h>

#include <cmath>

#include "kernels/kernels.h"
#include "mixers/chunks.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/rms_norm.h"
#include "mixers/short_conv.h"

namespace lineal {
namespace {

constexpr double kLengthEps = 1e-6;
constexpr double kOutputNormEps = 1e-5;

Dims check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const Tensor& S) {
  Dims dims("delta_rule");
  dims.check(q, "BTHK", "q");
  dims.check(k, "BTHK", "k");
  dims.check(v, "BTHV", "v");
  dims.check(beta, "BTH", "beta");
  dims.check(S, "BHKV", "S");
  return dims;
}

}  // namespace

std::pair<Tensor, Tensor> delta_rule_reference(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                               Tensor S, const Segments& segments) {
  const Dims dims = check(q, k, v, beta, S);
  std::vector<Tensor> o;
  for (int64_t t = 0; t < dims['T']; ++t) {
    S = restart(S, segments, t);
    const Tensor k_t = k.select(1, t).unsqueeze(2);                         // [B, H, 1, K]
    const Tensor error = v.select(1, t).unsqueeze(2) - at::matmul(k_t, S);  // [B, H, 1, V]
    S = S + k_t.transpose(2, 3) * (beta.select(1, t).unsqueeze(2).unsqueeze(3) * error);
    o.push_back(at::matmul(q.select(1, t).unsqueeze(2), S).squeeze(2));  // [B, H, V]
  }
  return {at::stack(o, 1), S};
}

std::pair<Tensor, Tensor> delta_rule_chunked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                             Tensor S, int64_t chunk_size, const Segments& segments) {
  const Dims dims = check(q, k, v, beta, S);
  const Chunks chunks(q.to(S.scalar_type()), chunk_size, segments);
  const auto split = [&](const Tensor& x) { return chunks.split(x.to(S.scalar_type())); };
  const Tensor Q = split(q), K = split(k), V = split(v);  // [B, H, n, C, K|V]
  const Tensor b = chunks.split(beta.unsqueeze(3));       // [B, H, n, C, 1]
  const Tensor A = chunks.inside(at::matmul(b * K, K.transpose(-1, -2)), /*strict=*/true);
  // U = R - W S, both sides of (I + A) U solved for every chunk at once; the diagonal of ones is implied.
  const Tensor right = at::cat({b * V, chunks.before(b * K)}, -1);
  const Tensor solved = at::linalg_solve_triangular(A, right, /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  const auto R = solved.slice(-1, 0, dims['V']).unbind(2), W = solved.slice(-1, dims['V']).unbind(2);
  const auto K_after = chunks.after(K).transpose(-1, -2).unbind(2);
  std::vector<Tensor> at_start, U;
  for (int64_t i = 0; i < chunks.count(); ++i) {
    const auto chunk = static_cast<size_t>(i);
    at_start.push_back(S);
    U.push_back(R[chunk] - at::matmul(W[chunk], S));  // [B, H, C, V]
    S = chunks.pass(S, i) + at::matmul(K_after[chunk], U.back());
  }
  const Tensor scores = chunks.inside(at::matmul(Q, K.transpose(-1, -2)));
  const Tensor o = at::matmul(chunks.before(Q), at::stack(at_start, 2)) + at::matmul(scores, at::stack(U, 2));
  return {chunks.join(o).to(v.scalar_type()), S};
}

namespace {

struct DeltaNetConfig : Config {
  int64_t num_attention_heads = 4;
  bool short_conv = true;
  int64_t conv_kernel = 4;
  int64_t chunk_size = 32;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "heads, each with a state of its own"},
        {"short_conv", &short_conv, {}, "a short convolution on q, k and v each"},
        {"conv_kernel", &conv_kernel, between(1, 64), "its width"},
        {"chunk_size", &chunk_size, size_range(), "tokens computed at once; changes no result"},
    };
  }
};

class DeltaNet : public Mixer {
 public:
  DeltaNet(const DeltaNetConfig& config, int64_t D)
      : config_(config),
        D_(D),
        H_(config.num_attention_heads),
        K_(head_size("delta_net", D, config.num_attention_heads)) {
    q_proj_ = register_module("q_proj", linear(D, D));
    k_proj_ = register_module("k_proj", linear(D, D));
    v_proj_ = register_module("v_proj", linear(D, D));
    b_proj_ = register_module("b_proj", linear(D, H_));
    if (config.short_conv) {
      conv_q_ = register_module("q_conv1d", std::make_shared<ShortConv>(D, config.conv_kernel));
      conv_k_ = register_module("k_conv1d", std::make_shared<ShortConv>(D, config.conv_kernel));
      conv_v_ = register_module("v_conv1d", std::make_shared<ShortConv>(D, config.conv_kernel));
    }
    o_norm_ = register_module("o_norm", std::make_shared<RmsNorm>(K_, kOutputNormEps));
    o_proj_ = register_module("o_proj", linear(D, D));
  }

  /// Parts: S [B, H, K, V], position [B] (tokens of the document read), and with short_conv the windows conv_q, conv_k,
  /// conv_v [B, conv_kernel - 1, D].
  State initial_state(int64_t B) const override {
    State state;
    state["S"] = at::zeros({B, H_, K_, K_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    if (config_.short_conv) {
      for (const char* name : {"conv_q", "conv_k", "conv_v"}) {
        state[name] = conv_q_->initial_state(B, state_options());
      }
    }
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    return mix(x, state, segments, nullptr);
  }
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override { return mix(x, pool, {}, &rows); }

  void reset_parameters(double deviation) override {
    for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &b_proj_, &o_proj_}) reset_linear(*map, deviation);
    for (auto* conv : {&conv_q_, &conv_k_, &conv_v_}) {
      if (*conv) (*conv)->reset_parameters();
    }
    o_norm_->reset_parameters();
  }

 private:
  Tensor mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
    const Dims dims = check_input("delta_net", x, state, D_, rows);
    const auto type = state_options().dtype().toScalarType();
    const auto view = [&](LinearMap& map, const std::shared_ptr<ShortConv>& conv, const char* window) {
      Tensor y = map(x);
      y = conv ? conv->forward(y, state[window], segments, Activation::silu, rows) : at::silu(y);
      return y.unflatten(2, {H_, K_});  // [B, T, H, K]
    };
    const Tensor q = view(q_proj_, conv_q_, "conv_q"), k = view(k_proj_, conv_k_, "conv_k");
    const Tensor v = view(v_proj_, conv_v_, "conv_v"), beta = b_proj_(x).to(type).sigmoid();
    count(state, dims['T'], segments, rows);
    Tensor o;
    {
      const FullPrecision guard(x);
      const auto of_length = [&](double length, const Tensor& y) {  // length y / sqrt(|y|^2 + eps), as a norm
        const auto K = static_cast<double>(K_);
        const Tensor weight = at::full({K_}, length / std::sqrt(K), state_options());
        return rms_norm(y.to(type), weight, kLengthEps / K, /*narrow=*/v.scalar_type() == at::kBFloat16);
      };
      const auto chunked = [&](const kernels::RecurrenceInput& in) {
        auto [out, S] = delta_rule_chunked(in.q, in.k, in.v, in.beta, in.S, config_.chunk_size, segments);
        return kernels::RecurrenceOutput{out, S};
      };
      auto out = kernels::use(kernels::delta_rule, chunked,
                              {.q = of_length(1 / std::sqrt(static_cast<double>(K_)), q),
                               .k = of_length(1, k),
                               .v = v,
                               .beta = beta,
                               .S = state["S"],
                               .starts = segments.starts,
                               .rows = rows});
      state["S"] = out.S;
      o = o_norm_->forward(out.o.to(type));
    }
    return o_proj_(o.flatten(2));
  }

  DeltaNetConfig config_;
  int64_t D_, H_, K_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, b_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<ShortConv> conv_q_, conv_k_, conv_v_;
  std::shared_ptr<RmsNorm> o_norm_;
};

}  // namespace

extern const MixerSpec delta_net_spec;
const MixerSpec delta_net_spec = {
    .name = "delta_net",
    .help = "linear attention that corrects what it has stored (Parallelizing the Delta Rule, 2024)",
    .config = make_config<DeltaNetConfig>,
    .make = make_mixer<DeltaNet, DeltaNetConfig>,
};

}  // namespace lineal
