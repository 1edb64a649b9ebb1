#include "backbones/feed_forward.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/token_shift.h"

namespace lineal {
namespace {

using Function = Tensor (*)(const Tensor&);

struct NamedFunction {
  const char* name;
  Function function;
};
constexpr NamedFunction kActivations[] = {
    {"silu", [](const Tensor& x) { return at::silu(x); }},
    {"gelu", [](const Tensor& x) { return at::gelu(x); }},
    {"gelu_tanh", [](const Tensor& x) { return at::gelu(x, "tanh"); }},
    {"relu", [](const Tensor& x) { return at::relu(x); }},
};

Function activation_of(const std::string& name) {
  for (const auto& [known, function] : kActivations) {
    if (name == known) return function;
  }
  fail_unknown("model", "activation", name, activation_names());
}

/// down(f(gate(x)) * up(x)).                                      (GLU Variants Improve Transformer, 2020)
class SwiGlu : public FeedForward {
 public:
  explicit SwiGlu(const FeedForwardConfig& config)
      : is_silu_(config.activation == "silu"), f_(activation_of(config.activation)) {
    gate_proj_ = register_module("gate_proj", linear(config.D, config.F, config.bias));
    up_proj_ = register_module("up_proj", linear(config.D, config.F, config.bias));
    down_proj_ = register_module("down_proj", linear(config.F, config.D, config.bias));
  }

  Tensor forward(const Tensor& x, State&, const Segments&, const Rows*) override {
    const Tensor gate = gate_proj_(x), up = up_proj_(x);
    return down_proj_(is_silu_ ? swiglu(gate, up) : f_(gate) * up);
  }

  void reset_parameters(double deviation) override {
    for (auto* map : {&gate_proj_, &up_proj_, &down_proj_}) reset_linear(*map, deviation);
  }

 private:
  bool is_silu_;
  Function f_;
  LinearMap gate_proj_{nullptr}, up_proj_{nullptr}, down_proj_{nullptr};
};

/// down(f(up(x))).                                                (Attention Is All You Need, 2017)
class Mlp : public FeedForward {
 public:
  explicit Mlp(const FeedForwardConfig& config) : f_(activation_of(config.activation)) {
    up_proj_ = register_module("up_proj", linear(config.D, config.F, config.bias));
    down_proj_ = register_module("down_proj", linear(config.F, config.D, config.bias));
  }

  Tensor forward(const Tensor& x, State&, const Segments&, const Rows*) override { return down_proj_(f_(up_proj_(x))); }

  void reset_parameters(double deviation) override {
    for (auto* map : {&up_proj_, &down_proj_}) reset_linear(*map, deviation);
  }

 private:
  Function f_;
  LinearMap up_proj_{nullptr}, down_proj_{nullptr};
};

/// sigmoid(r) * W_v relu(k)^2,  k = W_k (mu_k x_t + (1 - mu_k) x_{t-1}),  r = W_r (mu_r x_t + (1 - mu_r) x_{t-1}).
///                                                                (RWKV, 2023, eq. 18-20)
class ChannelMix : public FeedForward {
 public:
  explicit ChannelMix(const FeedForwardConfig& config) : D_(config.D) {
    mu_k_ = register_parameter("time_mix_key", at::empty({D_}));
    mu_r_ = register_parameter("time_mix_receptance", at::empty({D_}));
    key_ = register_module("key", linear(D_, config.F));
    receptance_ = register_module("receptance", linear(D_, D_));
    value_ = register_module("value", linear(config.F, D_));
  }

  /// Part: shift [B, D], the last token.
  State initial_state(int64_t B) const override {
    const auto type = mu_k_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    State state;
    state["shift"] = at::zeros({B, D_}, mu_k_.options().dtype(type).requires_grad(false));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments, const Rows* rows) override {
    const Tensor now = x.to(state["shift"].scalar_type()), before = token_shift(now, state["shift"], segments, rows);
    const Tensor k = key_(at::lerp(before, now, mu_k_)), r = receptance_(at::lerp(before, now, mu_r_));
    return r.sigmoid() * value_(k.relu().square());
  }

  void reset_parameters(double deviation) override {
    at::NoGradGuard no_grad;
    for (auto* map : {&key_, &receptance_, &value_}) reset_linear(*map, deviation);
    const Tensor place = at::arange(D_, mu_k_.options().requires_grad(false)) / static_cast<double>(D_);
    mu_k_.copy_(place), mu_r_.copy_(place);
  }

 private:
  int64_t D_;
  Tensor mu_k_, mu_r_;
  LinearMap key_{nullptr}, receptance_{nullptr}, value_{nullptr};
};

}  // namespace

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  const auto reference = [](const Tensor& a, const Tensor& b) { return at::silu(a) * b; };
  return kernels::use(kernels::swiglu, reference, gate, up);
}

State FeedForward::initial_state(int64_t /*B*/) const { return {}; }

std::vector<std::string> feed_forward_names() { return {"swiglu", "mlp", "channel_mix"}; }

std::vector<std::string> activation_names() {
  std::vector<std::string> names;
  for (const auto& [name, function] : kActivations) names.push_back(name);
  return names;
}

std::shared_ptr<FeedForward> make_feed_forward(const FeedForwardConfig& config) {
  if (config.name == "swiglu") return std::make_shared<SwiGlu>(config);
  if (config.name == "mlp") return std::make_shared<Mlp>(config);
  if (config.name != "channel_mix") fail_unknown("model", "ffn", config.name, feed_forward_names());
  if (config.bias) fail("model: ffn_bias is true, expected false with ffn channel_mix, which has none");
  if (config.activation != "silu") {
    fail("model: activation is ", config.activation,
         ", expected the default silu with ffn channel_mix, whose is relu^2");
  }
  return std::make_shared<ChannelMix>(config);
}

}  // namespace lineal
