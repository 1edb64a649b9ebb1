// Identity: the speed bound, a mixer that mixes nothing.   (OPT in "Rethinking Attention with Performers", 2020)
//   output   y_t = W_o W_v x_t
//   cost     O(T D^2) time, no state but a count
#include <ATen/ATen.h>

#include "mixers/linear.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

struct IdentityConfig : Config {
  std::vector<Field> fields() override { return {}; }
};

class Identity : public Mixer {
 public:
  Identity(const IdentityConfig&, int64_t D) : D_(D) {
    v_proj_ = register_module("v_proj", linear(D, D));
    o_proj_ = register_module("o_proj", linear(D, D));
  }

  State initial_state(int64_t B) const override {
    State state;
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("identity", x, state, D_);
    state["position"] = segments.positions(state["position"], dims['T']).select(1, -1) + 1;
    return o_proj_(v_proj_(x));
  }

  void reset_parameters(double deviation) override {
    reset_linear(v_proj_, deviation);
    reset_linear(o_proj_, deviation);
  }

 private:
  int64_t D_;
  LinearMap v_proj_{nullptr}, o_proj_{nullptr};
};

}  // namespace

extern const MixerSpec identity_spec;
const MixerSpec identity_spec = {
    .name = "identity",
    .help = "mixes nothing, returns V: the speed bound (OPT of Performer, 2020)",
    .causal = true,
    .constant_state = true,
    .mixes = false,
    .config = make_config<IdentityConfig>,
    .make = make_mixer<Identity, IdentityConfig>,
};

}  // namespace lineal
