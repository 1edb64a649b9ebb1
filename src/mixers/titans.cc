// Titans: a linear memory that learns by gradient descent with momentum, and forgets.       (Titans, 2024, eq. 9-14)
//   initial  S_0 = 0, Z_0 = 0                                                     [K, V] per head
//   loss     |S^T k_t - v_t|^2, whose gradient is taken at S~, the memory where t's inner batch began
//   update   Z_t = eta_t Z_{t-1} - 2 theta_t k_t (S~^T k_t - v_t)^T;  S_t = (1 - alpha_t) S_{t-1} + Z_t
//   output   o_t = S_t^T q_t
//   cost     O(T K V) time, 3 K V state per head (2 with inner batches of one token)
// q and k are projections, through a short convolution and silu, of length 1; 2 theta, eta and alpha sigmoids of
// projections, one per head. Without momentum or forgetting, inner batches of one token are the delta rule. With one
// token a batch a key that repeats cannot make it diverge: 2 theta |k|^2 < 2 (1 + eta).
#include "mixers/titans.h"

#include <ATen/ATen.h>

#include "core/dims.h"
#include "mixers/chunks.h"
#include "mixers/recurrent_layer.h"

namespace lineal {
namespace {

constexpr double kInitialForgetting = -4;  // alpha starts at its sigmoid, 0.018: memories last for tens of tokens

}  // namespace

Tensor titans_memory(const MemoryInput& in, Memory& memory, int64_t mini_batch_size) {
  Dims dims("titans");
  dims.check(in.q, "BTHK", "q");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHV", "v");
  for (const auto& [name, x] : {std::pair("theta", &in.theta), {"eta", &in.eta}, {"alpha", &in.alpha}}) {
    dims.check(*x, "BTH", name);
  }
  dims.check(memory.S, "BHKV", "S");
  std::vector<Tensor> o;
  for (int64_t t = 0; t < dims['T']; ++t) {
    const auto scalar = [&](const Tensor& x) { return x.select(1, t).unsqueeze(2).unsqueeze(3); };  // [B, H, 1, 1]
    const auto row = [&](const Tensor& x) { return x.select(1, t).unsqueeze(2); };                  // [B, H, 1, K|V]
    for (Tensor* part : {&memory.S, &memory.momentum, &memory.start}) *part = restart(*part, in.segments, t);
    const Tensor begins = (in.position.select(1, t).remainder(mini_batch_size) == 0).view({-1, 1, 1, 1});
    memory.start = at::where(begins, memory.S, memory.start);
    const Tensor error = at::matmul(row(in.k), memory.start) - row(in.v);  // [B, H, 1, V]
    memory.momentum = scalar(in.eta) * memory.momentum - 2 * scalar(in.theta) * row(in.k).transpose(2, 3) * error;
    memory.S = (1 - scalar(in.alpha)) * memory.S + memory.momentum;
    o.push_back(at::matmul(row(in.q), memory.S).squeeze(2));
  }
  return at::stack(o, 1);
}

namespace {

struct TitansConfig : RecurrentConfig {
  int64_t mini_batch_size = 1;

  TitansConfig() {
    short_conv = true;
    use_gate = true;
  }
  std::vector<Field> fields() override {
    auto list = RecurrentConfig::fields();
    list.back() = {"mini_batch_size", &mini_batch_size, size_range(),
                   "tokens whose gradients are taken at once; of many alike the sum may overshoot and diverge"};
    return list;
  }
};

class Titans : public RecurrentLayer {
 public:
  Titans(const TitansConfig& config, int64_t D)
      : RecurrentLayer("titans", config, D, /*silu=*/true), mini_batch_size_(config.mini_batch_size) {
    theta_proj_ = register_module("theta_proj", linear(D, H_));
    eta_proj_ = register_module("eta_proj", linear(D, H_));
    alpha_proj_ = register_module("alpha_proj", linear(D, H_, /*bias=*/true));
  }

  /// Beside those of the layer: momentum and start [B, H, K, V].
  State initial_state(int64_t B) const override {
    State state = RecurrentLayer::initial_state(B);
    state["momentum"] = at::zeros_like(state["S"]);
    state["start"] = at::zeros_like(state["S"]);
    return state;
  }

  /// The memory has no kernel that steps in place.
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override { return Mixer::step(x, pool, rows); }

  void reset_parameters(double deviation) override {
    RecurrentLayer::reset_parameters(deviation);
    for (auto* map : {&theta_proj_, &eta_proj_, &alpha_proj_}) reset_linear(*map, deviation);
    at::NoGradGuard no_grad;
    alpha_proj_->bias.fill_(kInitialForgetting);
  }

 private:
  Tensor recur(const Views& in, State& state) override {
    const auto rate = [&](LinearMap& map) { return map(in.x).to(in.type).sigmoid(); };
    const Tensor theta = 0.5 * rate(theta_proj_), eta = rate(eta_proj_), alpha = rate(alpha_proj_);
    const FullPrecision guard(in.x);
    Memory memory{state["S"], state["momentum"], state["start"]};
    const Tensor q = unit(in.q.to(in.type), in.type), k = unit(in.k.to(in.type), in.type), v = in.v.to(in.type);
    const Tensor o = titans_memory({q, k, v, theta, eta, alpha, in.position, in.segments}, memory, mini_batch_size_);
    state["S"] = memory.S;
    state["momentum"] = memory.momentum;
    state["start"] = memory.start;
    return o;
  }

  int64_t mini_batch_size_;
  LinearMap theta_proj_{nullptr}, eta_proj_{nullptr}, alpha_proj_{nullptr};
};

}  // namespace

extern const MixerSpec titans_spec;
const MixerSpec titans_spec = {
    .name = "titans",
    .help = "a linear memory that learns by gradient descent with momentum (Titans, 2024)",
    .config = make_config<TitansConfig>,
    .make = make_mixer<Titans, TitansConfig>,
};

}  // namespace lineal
