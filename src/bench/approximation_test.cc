#include "bench/approximation.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <numeric>

#include "testing/testing.h"

namespace lineal {
namespace {

TEST(Approximation, IsAttentionWithTheFeaturesProducts) {
  at::manual_seed(5);
  const Tensor q = normal({5, 4}, 1, at::kDouble), k = normal({7, 4}, 2, at::kDouble);
  const Tensor v = normal({7, 3}, 3, at::kDouble), w = normal({11, 4}, 4, at::kDouble);
  for (const auto& kind : FeatureMap::softmax_kinds()) {
    const FeatureMap phi(kind, 0);
    const Tensor none = at::zeros({1}, at::kDouble);
    const Tensor scores =
        at::matmul(phi(FeatureMap::project(q, w), none), phi(FeatureMap::project(k, w), none).t());  // [5, 7]
    EXPECT_CLOSE(approximate_attention(phi, w, q, k, v), at::matmul(scores, v) / scores.sum(1, true), 1e-12) << kind;
  }
}

/// Mean squared errors by feature map, projection and M. Kernel values are small and vary little, as in the figure's
/// regime: errors of positive features fall as 1/M, those of trigonometric ones are ratios of sums that cross zero.
std::map<std::string, std::map<int64_t, double>> errors() {
  ApproximationSizes sizes{.T = 64, .K = 8, .samples = 400, .deviation = 0.4, .offset = 1.4};
  std::map<std::string, std::map<int64_t, double>> found;
  for (const auto& row :
       measure_approximation(sizes, {8, 16, 32, 64, 128}, {"positive", "trig"}, {"iid", "r-orf", "h-orf", "g-orf"})) {
    EXPECT_EQ(row.squared_errors.size(), 400u);
    found[row.feature_map + " " + row.projection][row.M] =
        std::accumulate(row.squared_errors.begin(), row.squared_errors.end(), 0.0) / 400;
  }
  return found;
}

TEST(Approximation, OrthogonalErrsLessThanIidAndPositiveLessThanTrig) {
  auto found = errors();
  for (const auto& [M, iid] : found["positive iid"]) {
    for (const std::string rows : {"r-orf", "h-orf", "g-orf"}) {
      EXPECT_LT(found["positive " + rows][M], iid) << rows << ", " << M;
    }
    for (const std::string rows : {"iid", "r-orf", "h-orf", "g-orf"}) {
      EXPECT_LT(found["positive " + rows][M], found["trig " + rows][M]) << rows << ", " << M;
    }
  }
  for (const std::string rows : {"iid", "r-orf", "h-orf", "g-orf"}) {
    auto& by_M = found["positive " + rows];
    const double slope = std::log(by_M[128] / by_M[16]) / std::log(8.0);
    EXPECT_NEAR(slope, -1, 0.15) << rows;
  }
}

TEST(Approximation, RefusesWhatIsNoEstimateOfSoftmax) {
  const ApproximationSizes small{.T = 3, .K = 2, .samples = 1};
  EXPECT_TRUE(throws_error([&] { measure_approximation(small, {4}, {"relu"}, {"iid"}); },
                           {"feature map", "'relu'", "positive"}));
  EXPECT_TRUE(
      throws_error([&] { measure_approximation(small, {4}, {"trig"}, {"orf"}); }, {"projection", "'orf'", "r-orf"}));
}

LanguageModel model(const std::string& plan) {
  at::manual_seed(3);
  LanguageModelConfig config;
  config.hidden_size = 12;
  config.intermediate_size = 20;
  config.initializer_range = 0.3;
  config.layers = parse_plan(plan);
  return LanguageModel(config);
}

TEST(Propagation, ComparesBlockByBlock) {
  LanguageModel a = model("attention(num_attention_heads=2)*3"), b = model("attention(num_attention_heads=2)*3");
  const Tensor tokens = at::randint(256, {2, 9}, at::kLong);
  for (const BlockError& error : propagate_error(a, b, tokens)) {
    EXPECT_EQ(error.alone, 0);
    EXPECT_EQ(error.propagated, 0);
  }
  {
    const at::NoGradGuard no_grad;
    for (auto& item : b.blocks()[1]->named_parameters()) item.value().mul_(1.25);
  }
  const auto errors = propagate_error(a, b, tokens);
  ASSERT_EQ(errors.size(), 3u);
  EXPECT_EQ(errors[0].propagated, 0);
  EXPECT_GT(errors[1].alone, 0.01);
  EXPECT_EQ(errors[1].propagated, errors[1].alone);
  EXPECT_EQ(errors[2].alone, 0);
  EXPECT_GT(errors[2].propagated, 0.01);

  // Both models run to the end by hand.
  const at::NoGradGuard no_grad;
  State of_a = a.initial_state(2), of_b = b.initial_state(2);
  Tensor x = a.embed(tokens, of_a), y = b.embed(tokens, of_b);
  for (size_t i = 0; i < 3; ++i) {
    x = a.blocks()[i]->forward(x, of_a.child("layers").child(std::to_string(i)), {});
    y = b.blocks()[i]->forward(y, of_b.child("layers").child(std::to_string(i)), {});
  }
  EXPECT_NEAR(errors[2].propagated, ((y - x).norm() / x.norm()).item<double>(), 1e-6);

  const Tensor starts = at::zeros({1, 18}, at::kBool);
  starts[0][9] = true;
  const auto packed = propagate_error(a, b, tokens.view({1, 18}), {starts});
  EXPECT_NEAR(packed[2].propagated, errors[2].propagated, 1e-6) << "documents in one row";

  LanguageModel short_one = model("attention(num_attention_heads=2)*2");
  EXPECT_TRUE(throws_error([&] { propagate_error(a, short_one, tokens); }, {"propagation", "2 layers", "3"}));
}

}  // namespace
}  // namespace lineal
