#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "testing/plain_layer.h"

namespace lineal {
namespace {

/// The layer as gla.cc's head has it, one token after another.
Tensor plain_layer(const NamedWeights& weights, const Tensor& x, int64_t H, bool short_conv, double normalizer) {
  const Tensor q = plain_view(weights, "q", x, H, short_conv), k = plain_view(weights, "k", x, H, short_conv);
  const Tensor v = plain_view(weights, "v", x, H, short_conv);
  const int64_t B = x.size(0), T = x.size(1), K = q.size(3), V = v.size(3);
  const Tensor gate = at::linear(at::linear(x, weights["gk_proj.0.weight"]), weights["gk_proj.1.weight"]);
  const Tensor decay = (gate + weights["gk_proj.1.bias"]).sigmoid().pow(1 / normalizer).unflatten(2, {H, K});
  Tensor S = at::zeros({B, H, K, V}, x.options()), o = at::zeros({B, T, H, V}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    S = S * decay.select(1, t).unsqueeze(3) + at::einsum("bhk,bhv->bhkv", {k.select(1, t), v.select(1, t)});
    o.select(1, t).copy_(at::einsum("bhkv,bhk->bhv", {S, q.select(1, t)}) / std::sqrt(static_cast<double>(K)));
  }
  return plain_output(weights, o, x, /*gate=*/true);
}

TEST(GLA, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t H = 3, D = 18;
  for (const bool short_conv : {true, false}) {
    const Json options = {{"num_attention_heads", H},
                          {"short_conv", short_conv},
                          {"gate_low_rank_dim", 5},
                          {"gate_logit_normalizer", 3},
                          {"chunk_size", 4}};
    const auto mixer = random_mixer("gla", options, D);
    const Tensor x = normal({2, 13, D}, 1, at::kDouble);
    EXPECT_CLOSE(read_all(*mixer, x), plain_layer(mixer->named_parameters(), x, H, short_conv, 3), 1e-11);
  }
}

/// Gates of one make it linear attention.
TEST(GLA, WithoutDecayItIsLinearAttention) {
  at::NoGradGuard no_grad;
  const int64_t D = 12;
  const auto gated = random_mixer("gla", {{"use_gate", false}, {"expand_k", 1}}, D);
  const auto plain = random_mixer("linear_attention", Json::object(), D);
  auto weights = gated->named_parameters();
  weights["gk_proj.1.weight"].zero_();
  weights["gk_proj.1.bias"].fill_(INFINITY);
  for (auto& item : plain->named_parameters()) item.value().copy_(weights[item.key()]);
  const Tensor x = normal({2, 45, D}, 1, at::kDouble);
  EXPECT_CLOSE(read_all(*gated, x), read_all(*plain, x), 1e-12);
}

TEST(GLA, RefusesHeadsOfNoWholeSize) {
  EXPECT_ERROR(make_mixer("gla", {{"expand_k", 0.3}}, 24),
               "gla: expand_k is 0.3, which gives heads of 1.8 channels (hidden_size 24, num_attention_heads 4)");
}

}  // namespace
}  // namespace lineal
