// LSTM: long short-term memory, the recurrent layer before attention.      (Long Short-Term Memory, 1997; Gers, 2000)
//   initial  h_0 = 0, c_0 = 0                                                   [D]
//   gates    i, f, g, o = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh                 D rows each, in this order
//   update   c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g);  h_t = sigmoid(o) tanh(c_t)
//   output   h_t
//   cost     O(T D^2) time, 2 D state; token t waits for t - 1
// Parameters carry the names of torch.nn.LSTM.
#include <ATen/ATen.h>

#include <cmath>

#include "mixers/chunks.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

struct LSTMConfig : Config {
  std::vector<Field> fields() override { return {}; }
};

class LSTM : public Mixer {
 public:
  LSTM(const LSTMConfig&, int64_t D) : D_(D) {
    weight_ih_ = register_parameter("weight_ih_l0", at::empty({4 * D, D}));
    weight_hh_ = register_parameter("weight_hh_l0", at::empty({4 * D, D}));
    bias_ih_ = register_parameter("bias_ih_l0", at::empty({4 * D}));
    bias_hh_ = register_parameter("bias_hh_l0", at::empty({4 * D}));
  }

  /// Parts: h, c [B, D], position [B], tokens of the document read.
  State initial_state(int64_t B) const override {
    State state;
    state["h"] = at::zeros({B, D_}, state_options());
    state["c"] = at::zeros({B, D_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("lstm", x, state, D_);
    const Tensor projected = at::linear(x, weight_ih_, bias_ih_);
    const Tensor input = projected.to(state_options().dtype().toScalarType());  // [B, T, 4D]
    state["position"] = segments.positions(state["position"], dims['T']).select(1, -1) + 1;
    const FullPrecision guard(x);
    Tensor h = state["h"], c = state["c"];
    std::vector<Tensor> y;
    for (int64_t t = 0; t < dims['T']; ++t) {
      const auto gates = (input.select(1, t) + at::linear(restart(h, segments, t), weight_hh_, bias_hh_)).chunk(4, 1);
      c = gates[1].sigmoid() * restart(c, segments, t) + gates[0].sigmoid() * gates[2].tanh();
      h = gates[3].sigmoid() * c.tanh();
      y.push_back(h);
    }
    state["h"] = h;
    state["c"] = c;
    return at::stack(y, 1).to(projected.scalar_type());
  }

  /// Weights of order D^{-1/2} and forget gates that start open (Jozefowicz, 2015), whatever the deviation of others.
  void reset_parameters(double) override {
    at::NoGradGuard no_grad;
    const double bound = 1 / std::sqrt(static_cast<double>(D_));
    weight_ih_.uniform_(-bound, bound);
    weight_hh_.uniform_(-bound, bound);
    bias_ih_.zero_().slice(0, D_, 2 * D_).fill_(1);
    bias_hh_.zero_();
  }

 private:
  int64_t D_;
  Tensor weight_ih_, weight_hh_, bias_ih_, bias_hh_;
};

}  // namespace

extern const MixerSpec lstm_spec;
const MixerSpec lstm_spec = {
    .name = "lstm",
    .help = "the recurrent layer before attention (Long Short-Term Memory, 1997)",
    .config = make_config<LSTMConfig>,
    .make = make_mixer<LSTM, LSTMConfig>,
};

}  // namespace lineal
