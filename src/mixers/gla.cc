// Gated linear attention: a linear attention that forgets, each key channel at its own rate.
//                                                           (Gated Linear Attention Transformers, 2023, eq. 3 and 4)
//   initial  S_0 = 0                                                      [K, V]
//   update   S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T
//   output   o_t = K^{-1/2} S_t^T q_t
//   decays   g_t = log sigmoid(W_2 W_1 x_t + b) / tau                     [K] per head, W_1 of low rank
//   cost     O(T K (V + C)) time, K V state per head
#include <ATen/ATen.h>

#include "mixers/recurrent_layer.h"

namespace lineal {
namespace {

struct GLAConfig : RecurrentConfig {
  int64_t gate_low_rank_dim = 16;
  double gate_logit_normalizer = 16;

  GLAConfig() {
    expand_k = 0.5;
    use_gate = true;
    chunk_size = 16;
  }
  std::vector<Field> fields() override {
    auto list = RecurrentConfig::fields();
    list.push_back({"gate_low_rank_dim", &gate_low_rank_dim, size_range(), "rank of the decays' projection"});
    list.push_back({"gate_logit_normalizer", &gate_logit_normalizer, at_least(1e-3), "tau: larger decays slower"});
    return list;
  }
};

class GLA : public RecurrentLayer {
 public:
  GLA(const GLAConfig& config, int64_t D)
      : RecurrentLayer("gla", config, D), normalizer_(config.gate_logit_normalizer) {
    auto gk_proj = register_module("gk_proj", std::make_shared<torch::nn::Module>());
    down_ = gk_proj->register_module("0", linear(D, config.gate_low_rank_dim));
    up_ = gk_proj->register_module("1", linear(config.gate_low_rank_dim, H_ * K_, /*bias=*/true));
  }

  void reset_parameters(double deviation) override {
    RecurrentLayer::reset_parameters(deviation);
    at::NoGradGuard no_grad;
    reset_linear(down_, deviation);
    reset_linear(up_, deviation);
    up_->bias.zero_();
  }

 private:
  Tensor recur(const Views& in, State& state) override {
    const Tensor gate = up_(down_(in.x)).to(in.type).unflatten(2, {H_, K_});
    return linear_recur({.q = in.q, .k = in.k, .v = in.v, .g = at::log_sigmoid(gate) / normalizer_}, in, state);
  }

  double normalizer_;
  LinearMap down_{nullptr}, up_{nullptr};
};

}  // namespace

extern const MixerSpec gla_spec;
const MixerSpec gla_spec = {
    .name = "gla",
    .help = "linear attention with a decay per key channel (Gated Linear Attention Transformers, 2023)",
    .config = make_config<GLAConfig>,
    .make = make_mixer<GLA, GLAConfig>,
};

}  // namespace lineal
