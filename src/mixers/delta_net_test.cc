#include <ATen/ATen.h>

#include <cmath>

#include "testing/plain_layer.h"

namespace lineal {
namespace {

/// The layer as delta_net.cc's head has it, one token after another.
Tensor plain_layer(const NamedWeights& weights, const Tensor& x, int64_t H, bool short_conv) {
  const auto view = [&](const char* name) {
    const Tensor y = plain_view(weights, name, x, H, short_conv);
    return short_conv ? y : plain_silu(y);
  };
  const Tensor q = plain_unit(view("q")), k = plain_unit(view("k")), v = view("v");
  const int64_t B = x.size(0), T = x.size(1), K = q.size(3), V = v.size(3);
  const Tensor beta = 1 / (1 + at::linear(x, weights["b_proj.weight"]).neg().exp());  // [B, T, H]
  Tensor S = at::zeros({B, H, K, V}, x.options()), o = at::zeros({B, T, H, V}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    const Tensor k_t = k.select(1, t), error = v.select(1, t) - at::einsum("bhkv,bhk->bhv", {S, k_t});
    S = S + beta.select(1, t).unsqueeze(2).unsqueeze(3) * at::einsum("bhk,bhv->bhkv", {k_t, error});
    o.select(1, t).copy_(at::einsum("bhkv,bhk->bhv", {S, q.select(1, t)}) / std::sqrt(static_cast<double>(K)));
  }
  return plain_output(weights, o, x, /*gate=*/false);
}

TEST(DeltaNet, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  for (const bool short_conv : {true, false}) {
    const int64_t H = 3, D = 15;
    const auto mixer = random_mixer(
        "delta_net", {{"num_attention_heads", H}, {"short_conv", short_conv}, {"conv_kernel", 3}, {"chunk_size", 4}},
        D);
    const Tensor x = normal({2, 13, D}, 1, at::kDouble);
    EXPECT_CLOSE(read_all(*mixer, x), plain_layer(mixer->named_parameters(), x, H, short_conv), 1e-11);
  }
}

}  // namespace
}  // namespace lineal
