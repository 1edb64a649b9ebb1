// Retention: a linear attention whose heads forget at fixed rates.              (Retentive Network, 2023, eq. 5 to 8)
//   initial  S_0 = 0                                                      [K, V]
//   update   S_t = gamma_h S_{t-1} + k_t v_t^T,  gamma_h = 1 - 2^(-5-h) for head h = 0..H-1
//   output   o_t = K^{-1/2} S_t^T q_t
//   cost     O(T K (V + C)) time, K V state per head
// q and k are rotated by their place in the document.
#include <ATen/ATen.h>

#include "core/error.h"
#include "mixers/recurrent_layer.h"
#include "positions/rope.h"

namespace lineal {
namespace {

struct RetentionConfig : RecurrentConfig {
  double rope_theta = 10000;

  RetentionConfig() {
    expand_v = 2;
    use_gate = true;
  }
  std::vector<Field> fields() override {
    auto list = RecurrentConfig::fields();
    list.push_back({"rope_theta", &rope_theta, at_least(0), "rotary base; 0 for none"});
    return list;
  }
  void validate(const std::string& who) override {
    RecurrentConfig::validate(who);
    check_rotary_base(who, rope_theta);
  }
};

class Retention : public RecurrentLayer {
 public:
  Retention(const RetentionConfig& config, int64_t D)
      : RecurrentLayer("retention", config, D), theta_(config.rope_theta) {
    if (theta_ > 0 && K_ % 2 != 0) fail("retention: head size is ", K_, ", rotary embedding needs an even one");
  }

 private:
  Tensor recur(const Views& in, State& state) override {
    const auto rotated = [&](const Tensor& x) {
      return theta_ > 0 ? rope(x, in.position, theta_, RopePairs::halves) : x;
    };
    const Tensor h = at::arange(H_, in.q.options().requires_grad(false).dtype(at::kDouble));
    const Tensor g = (-at::exp2(-5 - h)).log1p().to(in.type).expand({in.q.size(0), in.q.size(1), H_});
    return linear_recur({.q = rotated(in.q), .k = rotated(in.k), .v = in.v, .g = g}, in, state);
  }

  double theta_;
};

}  // namespace

extern const MixerSpec retention_spec;
const MixerSpec retention_spec = {
    .name = "retention",
    .help = "linear attention with a fixed decay per head (Retentive Network, 2023)",
    .config = make_config<RetentionConfig>,
    .make = make_mixer<Retention, RetentionConfig>,
};

}  // namespace lineal
