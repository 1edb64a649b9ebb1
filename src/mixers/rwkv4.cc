// RWKV-4: a weighted mean of values, weights falling with the distance, per channel.         (RWKV, 2023, eq. 11-17)
//   output   y_t = (sum_{j<t} exp(w (t-1-j) + k_j) v_j + exp(u + k_t) v_t) / (the same without v),  w =
//   -exp(time_decay)
//            the layer's: W_o (sigmoid(r_t) y_t)
//   initial  a_0 = b_0 = 0, p_0 = -1e38                                         [A] each
//   update   a_t = exp(p_{t-1} + w - p_t) a_{t-1} + exp(k_t - p_t) v_t, b_t the same with 1 for v_t,
//            p_t = max(p_{t-1} + w, k_t): the sums are a exp(p) and b exp(p), and no exponential is above 1
//   views    k, v, r each of a mix of their own, mu x_t + (1 - mu) x_{t-1};  u = time_first
//   cost     O(T A) time, 3 A state and the last token
#include "mixers/rwkv4.h"

#include <ATen/ATen.h>

#include <cmath>

#include "mixers/derived.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/token_shift.h"

namespace lineal {
namespace {

kernels::WkvOutput wkv_reference(const kernels::WkvInput& in) {
  Tensor a = in.a, b = in.b, p = in.p;
  std::vector<Tensor> y;
  for (int64_t t = 0; t < in.k.size(1); ++t) {
    const Tensor k = in.k.select(1, t), v = in.v.select(1, t);  // [B, A]
    if (in.starts.defined()) {
      const Tensor starts = in.starts.select(1, t).unsqueeze(1);
      a = at::where(starts, 0, a), b = at::where(starts, 0, b), p = at::where(starts, kernels::kWkvLeast, p);
    }
    const Tensor q = at::maximum(p, k + in.u), e = (p - q).exp(), f = (k + in.u - q).exp();
    y.push_back((e * a + f * v) / (e * b + f));
    const Tensor r = at::maximum(p + in.w, k), g = (p + in.w - r).exp(), h = (k - r).exp();
    a = g * a + h * v, b = g * b + h, p = r;
  }
  return {at::stack(y, 1), a, b, p};
}

struct RWKV4Config : Config {
  int64_t attention_hidden_size = 0;

  std::vector<Field> fields() override {
    return {{"attention_hidden_size", &attention_hidden_size, between(0, 1 << 20), "channels; 0: hidden_size"}};
  }
};

class RWKV4 : public Mixer {
 public:
  RWKV4(const RWKV4Config& config, int64_t D)
      : D_(D), A_(config.attention_hidden_size > 0 ? config.attention_hidden_size : D) {
    time_decay_ = register_parameter("time_decay", at::empty({A_}));
    time_first_ = register_parameter("time_first", at::empty({A_}));
    mu_k_ = register_parameter("time_mix_key", at::empty({D}));
    mu_v_ = register_parameter("time_mix_value", at::empty({D}));
    mu_r_ = register_parameter("time_mix_receptance", at::empty({D}));
    key_ = register_module("key", linear(D, A_));
    value_ = register_module("value", linear(D, A_));
    receptance_ = register_module("receptance", linear(D, A_));
    output_ = register_module("output", linear(A_, D));
  }

  /// Parts: shift [B, D] (the last token), a, b, p [B, A].
  State initial_state(int64_t B) const override {
    State state;
    state["shift"] = at::zeros({B, D_}, state_options());
    state["a"] = at::zeros({B, A_}, state_options());
    state["b"] = at::zeros({B, A_}, state_options());
    state["p"] = at::full({B, A_}, kernels::kWkvLeast, state_options());
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    return mix(x, state, segments, nullptr);
  }
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override { return mix(x, pool, {}, &rows); }

  /// Decays and mixes that differ from channel to channel, as the paper's appendix has them for a first layer.
  void reset_parameters(double deviation) override {
    at::NoGradGuard no_grad;
    for (auto* map : {&key_, &value_, &receptance_, &output_}) reset_linear(*map, deviation);
    const auto places = [&](int64_t n) { return at::arange(n, time_decay_.options().requires_grad(false)); };
    const Tensor place = places(D_) / static_cast<double>(D_);
    mu_k_.copy_(place), mu_v_.copy_(place), mu_r_.copy_(place.sqrt());
    time_decay_.copy_(-5 + 8 * (places(A_) / static_cast<double>(std::max<int64_t>(A_ - 1, 1))).pow(0.7));
    time_first_.copy_(std::log(0.3) + 0.5 * ((places(A_) + 1).remainder(3) - 1));
  }

 private:
  Tensor mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
    check_input("rwkv4", x, state, D_, rows);
    const auto type = state_options().dtype().toScalarType();
    const Tensor now = x.to(type), before = token_shift(now, state["shift"], segments, rows);
    const Tensor k = key_(at::lerp(before, now, mu_k_)), v = value_(at::lerp(before, now, mu_v_));
    const Tensor r = receptance_(at::lerp(before, now, mu_r_));
    Tensor y;
    {
      const FullPrecision guard(x);
      const auto out = wkv({.k = k.to(type),
                            .v = v.to(type),
                            .w = decay_(time_decay_, [](const Tensor& decay) { return -decay.exp(); }),
                            .u = time_first_,
                            .a = state["a"],
                            .b = state["b"],
                            .p = state["p"],
                            .starts = segments.starts,
                            .rows = rows});
      state["a"] = out.a, state["b"] = out.b, state["p"] = out.p;
      y = r.sigmoid() * out.y;
    }
    return output_(y);
  }

  int64_t D_, A_;
  Tensor time_decay_, time_first_, mu_k_, mu_v_, mu_r_;
  LinearMap key_{nullptr}, value_{nullptr}, receptance_{nullptr}, output_{nullptr};
  Derived decay_;
};

}  // namespace

kernels::WkvOutput wkv(const kernels::WkvInput& in) { return kernels::use(kernels::wkv, wkv_reference, in); }

extern const MixerSpec rwkv4_spec;
const MixerSpec rwkv4_spec = {
    .name = "rwkv4",
    .help = "means of values with decays per channel (RWKV, 2023)",
    .config = make_config<RWKV4Config>,
    .make = make_mixer<RWKV4, RWKV4Config>,
};

}  // namespace lineal
