#include <ATen/ATen.h>

#include <cmath>

#include "testing/plain_layer.h"

namespace lineal {
namespace {

/// The layer as gated_delta_net.cc's head has it, one token after another.
Tensor plain_layer(const NamedWeights& weights, const Tensor& x, int64_t H) {
  const Tensor q = plain_unit(plain_view(weights, "q", x, H, true)),
               k = plain_unit(plain_view(weights, "k", x, H, true));
  const Tensor v = plain_view(weights, "v", x, H, true);
  const int64_t B = x.size(0), T = x.size(1), K = q.size(3), V = v.size(3);
  const Tensor beta = 1 / (1 + at::linear(x, weights["b_proj.weight"]).neg().exp());  // [B, T, H]
  const Tensor step = (1 + (at::linear(x, weights["a_proj.weight"]) + weights["dt_bias"]).exp()).log();
  const Tensor decay = (-weights["A_log"].exp() * step).exp();
  Tensor S = at::zeros({B, H, K, V}, x.options()), o = at::zeros({B, T, H, V}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    S = S * decay.select(1, t).unsqueeze(2).unsqueeze(3);
    const Tensor k_t = k.select(1, t), error = v.select(1, t) - at::einsum("bhkv,bhk->bhv", {S, k_t});
    S = S + beta.select(1, t).unsqueeze(2).unsqueeze(3) * at::einsum("bhk,bhv->bhkv", {k_t, error});
    o.select(1, t).copy_(at::einsum("bhkv,bhk->bhv", {S, q.select(1, t)}) / std::sqrt(static_cast<double>(K)));
  }
  return plain_output(weights, o, x, /*gate=*/true);
}

TEST(GatedDeltaNet, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t H = 3, D = 15;
  const auto mixer = random_mixer("gated_delta_net", {{"num_attention_heads", H}, {"chunk_size", 4}}, D);
  const Tensor x = normal({2, 13, D}, 1, at::kDouble);
  EXPECT_CLOSE(read_all(*mixer, x), plain_layer(mixer->named_parameters(), x, H), 1e-11);
}

/// Without decay it is DeltaNet.
TEST(GatedDeltaNet, WithoutDecayItIsDeltaNet) {
  at::NoGradGuard no_grad;
  const int64_t D = 12;
  const auto gated = random_mixer("gated_delta_net", {{"use_gate", false}, {"expand_v", 1}}, D);
  const auto plain = random_mixer("delta_net", Json::object(), D);
  auto weights = gated->named_parameters();
  weights["A_log"].fill_(-INFINITY);
  for (auto& item : plain->named_parameters()) item.value().copy_(weights[item.key()]);
  const Tensor x = normal({2, 45, D}, 1, at::kDouble);
  EXPECT_CLOSE(read_all(*gated, x), read_all(*plain, x), 1e-12);
}

TEST(GatedDeltaNet, InitialDecaysAreThoseOfThePaper) {
  const auto mixer = make_mixer("gated_delta_net", {{"num_attention_heads", 256}, {"expand_v", 1}}, 256);
  const auto weights = mixer->named_parameters();
  const Tensor rate = weights["A_log"].exp(), step = at::softplus(weights["dt_bias"]);
  EXPECT_GE(rate.min().item<double>(), 0.999);
  EXPECT_LE(rate.max().item<double>(), 16.001);
  EXPECT_NEAR(rate.mean().item<double>(), 8.5, 1);
  EXPECT_NEAR(step.log().mean().item<double>(), std::log(1e-2), 0.3);  // log-uniform in [1e-3, 1e-1]
}

}  // namespace
}  // namespace lineal
