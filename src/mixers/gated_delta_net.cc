// Gated DeltaNet: a delta rule that also forgets.                                 (Gated Delta Networks, 2024, eq. 10)
//   initial  S_0 = 0                                                      [K, V]
//   update   S' = exp(g_t) S_{t-1};  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T
//   output   o_t = K^{-1/2} S_t^T q_t
//   decay    g_t = -exp(A_log) softplus(W_a x_t + dt_bias);  beta_t = sigmoid(W_b x_t)      one per head
//   cost     O(T K (V + C)) time, K V state per head
// q and k are projections, through a short convolution and silu, of length 1.
#include <ATen/ATen.h>

#include "mixers/mamba.h"
#include "mixers/recurrent_layer.h"

namespace lineal {
namespace {

constexpr double kLeastRate = 1, kMostRate = 16;  // exp(A_log) at the start of training, uniform

struct GatedDeltaNetConfig : RecurrentConfig {
  GatedDeltaNetConfig() {
    expand_v = 2;
    short_conv = true;
    use_gate = true;
    chunk_size = 32;
  }
};

class GatedDeltaNet : public RecurrentLayer {
 public:
  GatedDeltaNet(const GatedDeltaNetConfig& config, int64_t D)
      : RecurrentLayer("gated_delta_net", config, D, /*silu=*/true) {
    a_proj_ = register_module("a_proj", linear(D, H_));
    b_proj_ = register_module("b_proj", linear(D, H_));
    A_log_ = register_parameter("A_log", at::empty({H_}));
    dt_bias_ = register_parameter("dt_bias", at::empty({H_}));
  }

  void reset_parameters(double deviation) override {
    RecurrentLayer::reset_parameters(deviation);
    at::NoGradGuard no_grad;
    reset_linear(a_proj_, deviation);
    reset_linear(b_proj_, deviation);
    A_log_.uniform_(kLeastRate, kMostRate).log_();
    reset_step(dt_bias_);
  }

 private:
  Tensor recur(const Views& in, State& state) override {
    const Tensor q = unit(in.q, in.type), k = unit(in.k, in.type), beta = b_proj_(in.x).to(in.type).sigmoid();
    const Tensor g = -A_log_.exp() * at::softplus(a_proj_(in.x).to(in.type) + dt_bias_);
    return linear_recur({.q = q, .k = k, .v = in.v, .beta = beta, .g = g}, in, state);
  }

  LinearMap a_proj_{nullptr}, b_proj_{nullptr};
  Tensor A_log_, dt_bias_;
};

}  // namespace

extern const MixerSpec gated_delta_net_spec;
const MixerSpec gated_delta_net_spec = {
    .name = "gated_delta_net",
    .help = "delta rule with a decay per head (Gated Delta Networks, 2024)",
    .config = make_config<GatedDeltaNetConfig>,
    .make = make_mixer<GatedDeltaNet, GatedDeltaNetConfig>,
};

}  // namespace lineal
