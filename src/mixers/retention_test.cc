#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "testing/plain_layer.h"

namespace lineal {
namespace {

/// x [B, T, H, K] with the pair (i, i + K/2) turned by t theta^(-2i/K).
Tensor plain_rope(const Tensor& x, double theta) {
  Tensor y = at::zeros_like(x);
  const int64_t half = x.size(3) / 2;
  for (int64_t t = 0; t < x.size(1); ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(t) * std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
      const Tensor u = x.select(1, t).select(2, i), w = x.select(1, t).select(2, i + half);
      y.select(1, t).select(2, i).copy_(u * std::cos(angle) - w * std::sin(angle));
      y.select(1, t).select(2, i + half).copy_(u * std::sin(angle) + w * std::cos(angle));
    }
  }
  return y;
}

/// The layer as retention.cc's head has it, in its parallel form: o_t = sum_{j<=t} gamma^(t-j) (q_t . k_j) v_j.
Tensor plain_layer(const NamedWeights& weights, const Tensor& x, int64_t H, double theta) {
  Tensor q = plain_view(weights, "q", x, H, false), k = plain_view(weights, "k", x, H, false);
  const Tensor v = plain_view(weights, "v", x, H, false);
  if (theta > 0) q = plain_rope(q, theta), k = plain_rope(k, theta);
  Tensor o = at::zeros_like(v);
  for (int64_t h = 0; h < H; ++h) {
    const double gamma = 1 - std::pow(2.0, -5.0 - static_cast<double>(h));
    for (int64_t t = 0; t < x.size(1); ++t) {
      for (int64_t j = 0; j <= t; ++j) {
        const Tensor score = (q.select(2, h).select(1, t) * k.select(2, h).select(1, j)).sum(1, true);
        o.select(2, h).select(1, t).add_(std::pow(gamma, static_cast<double>(t - j)) * score *
                                         v.select(2, h).select(1, j));
      }
    }
  }
  return plain_output(weights, o / std::sqrt(static_cast<double>(q.size(3))), x, /*gate=*/true);
}

TEST(Retention, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t H = 3, D = 18;
  for (const double theta : {0.0, 100.0}) {
    const auto mixer =
        random_mixer("retention", {{"num_attention_heads", H}, {"rope_theta", theta}, {"chunk_size", 4}}, D);
    const Tensor x = normal({2, 13, D}, 1, at::kDouble);
    EXPECT_CLOSE(read_all(*mixer, x), plain_layer(mixer->named_parameters(), x, H, theta), 1e-11);
  }
}

TEST(Retention, RefusesWhatCannotBe) {
  EXPECT_ERROR(make_mixer("retention", {{"num_attention_heads", 5}}, 15),
               "retention: head size is 3, rotary embedding needs an even one");
}

}  // namespace
}  // namespace lineal
