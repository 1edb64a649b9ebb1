// RWKV-4 against its formula without a running maximum, and where that would overflow. Whole models of the public
// implementation: interop/published_test.cc.
#include <ATen/ATen.h>

#include "kernels/kernels.h"
#include "mixers/mixer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t kWidth = 10, kChannels = 7;

std::shared_ptr<Mixer> make() {
  auto mixer = make_mixer("rwkv4", {{"attention_hidden_size", kChannels}}, kWidth);
  mixer->reset_parameters(0.5);
  at::NoGradGuard no_grad;
  for (Tensor& parameter : mixer->parameters()) parameter.add_(0.2 * at::randn_like(parameter));
  return mixer;
}

/// y_t = (sum_{j<t} exp(w (t-1-j) + k_j) v_j + exp(u + k_t) v_t) / (the same without v), one token at a time.
Tensor naive(const Mixer& mixer, const Tensor& x) {
  const auto p = mixer.named_parameters();
  const int64_t T = x.size(1);
  const Tensor before = at::constant_pad_nd(x, {0, 0, 1, -1});
  const auto view = [&](const char* map, const char* mu) {
    return at::linear(x * p[mu] + before * (1 - p[mu]), p[std::string(map) + ".weight"]);
  };
  const Tensor k = view("key", "time_mix_key"), v = view("value", "time_mix_value");
  const Tensor r = view("receptance", "time_mix_receptance"), w = -p["time_decay"].exp();
  std::vector<Tensor> y;
  for (int64_t t = 0; t < T; ++t) {
    Tensor weight = (p["time_first"] + k.select(1, t)).exp();
    Tensor above = weight * v.select(1, t), below = weight;
    for (int64_t j = 0; j < t; ++j) {
      weight = (w * static_cast<double>(t - 1 - j) + k.select(1, j)).exp();
      above = above + weight * v.select(1, j), below = below + weight;
    }
    y.push_back(above / below);
  }
  return at::linear(r.sigmoid() * at::stack(y, 1), p["output.weight"]);
}

TEST(RWKV4, IsAWeightedMeanOfValues) {
  at::NoGradGuard no_grad;
  const auto mixer = make();
  const Tensor x = normal({3, 23, kWidth}, 1);
  mixer->to(at::kDouble);
  const Tensor expected = naive(*mixer, x.to(at::kDouble));
  State state = mixer->initial_state(3);
  EXPECT_CLOSE(mixer->forward(x.to(at::kDouble), state), expected, 1e-12);
  mixer->to(at::kFloat);
  State narrow = mixer->initial_state(3);
  EXPECT_CLOSE(mixer->forward(x.to(at::kFloat), narrow), expected.to(at::kFloat), 1e-5);
}

TEST(RWKV4, ExtremeKeysStayFinite) {
  const auto mixer = make();
  {
    at::NoGradGuard no_grad;
    mixer->named_parameters()["key.weight"].mul_(300);
  }
  for (const auto choice : {kernels::Choice::automatic, kernels::Choice::reference}) {
    kernels::choose(choice);
    Tensor x = normal({2, 31, kWidth}, 2).to(at::kFloat).requires_grad_();
    State state = mixer->initial_state(2);
    const Tensor y = mixer->forward(x, state);
    y.square().sum().backward();
    EXPECT_TRUE(y.isfinite().all().item<bool>());
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
  }
  kernels::choose(kernels::Choice::automatic);
}

}  // namespace
}  // namespace lineal
