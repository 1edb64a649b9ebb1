// DeltaNet: linear attention that corrects instead of adds.
//                                    (Parallelizing Linear Transformers with the Delta Rule, 2024, eq. 2, 8-11)
//   initial  S_0 = 0                                                      [K, V]
//   update   S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
//   output   o_t = K^{-1/2} S_t^T q_t
//   cost     O(T K (V + C)) time, K V state per head
// q and k are projections, through a short convolution and silu, of length 1; beta = sigmoid(W_b x), one per head.
#include <ATen/ATen.h>

#include "mixers/recurrent_layer.h"

namespace lineal {
namespace {

struct DeltaNetConfig : RecurrentConfig {
  DeltaNetConfig() {
    short_conv = true;
    chunk_size = 32;
  }
};

class DeltaNet : public RecurrentLayer {
 public:
  DeltaNet(const DeltaNetConfig& config, int64_t D) : RecurrentLayer("delta_net", config, D, /*silu=*/true) {
    b_proj_ = register_module("b_proj", linear(D, H_));
  }

  void reset_parameters(double deviation) override {
    RecurrentLayer::reset_parameters(deviation);
    reset_linear(b_proj_, deviation);
  }

 private:
  Tensor recur(const Views& in, State& state) override {
    const Tensor beta = b_proj_(in.x).to(in.type).sigmoid();
    return linear_recur({.q = unit(in.q, in.type), .k = unit(in.k, in.type), .v = in.v, .beta = beta}, in, state);
  }

  LinearMap b_proj_{nullptr};
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
