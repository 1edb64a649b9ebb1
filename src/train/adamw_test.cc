#include "train/adamw.h"

#include <ATen/ATen.h>

#include <cmath>

#include "testing/testing.h"
#include "testing/throws_error.h"
#include "train/schedule.h"

namespace lineal {
namespace {

TrainConfig config_of(const Json& fields) {
  TrainConfig config;
  config.read(fields, "test");
  return config;
}

Tensor parameter(at::IntArrayRef shape, uint64_t seed, at::ScalarType type = at::kDouble) {
  return normal(shape, seed, type).requires_grad_();
}

TEST(AdamW, FollowsTheFormulaByGroups) {
  const TrainConfig config = config_of(
      {{"beta1", 0.8}, {"beta2", 0.9}, {"eps", 1e-3}, {"weight_decay", 0.3}, {"lr_scale", "*.b1=0, *.proj.* = 0.5"}});
  const NamedTensors parameters = {{"layers.0.proj.weight", parameter({3, 5}, 1)},
                                   {"layers.0.W1", parameter({7, 5, 5}, 2)},
                                   {"layers.0.b1", parameter({7, 1, 5}, 3)},
                                   {"norm.weight", parameter({5}, 4)},
                                   {"embed_tokens.weight", parameter({11, 5}, 5)}};
  const std::vector<double> factors = {0.5, 1, 0, 1, 1}, decay = {0.3, 0, 0, 0, 0.3};
  AdamW optimizer(parameters, config);
  std::vector<Tensor> p, m, v;
  for (const auto& [name, tensor] : parameters) {
    p.push_back(tensor.detach().clone());
    m.push_back(at::zeros_like(p.back()));
    v.push_back(at::zeros_like(p.back()));
  }
  const double lr = 0.07;
  for (int t = 1; t <= 3; ++t) {
    for (size_t i = 0; i < p.size(); ++i) {
      const Tensor g = normal(p[i].sizes(), 100 * static_cast<uint64_t>(t) + i, at::kDouble);
      parameters[i].second.mutable_grad() = g.clone();
      m[i] = 0.8 * m[i] + 0.2 * g;
      v[i] = 0.9 * v[i] + 0.1 * g * g;
      const Tensor step = m[i] / (1 - std::pow(0.8, t)) / ((v[i] / (1 - std::pow(0.9, t))).sqrt() + 1e-3);
      p[i] = p[i] - lr * factors[i] * decay[i] * p[i] - lr * factors[i] * step;
    }
    optimizer.step(lr);
  }
  for (size_t i = 0; i < p.size(); ++i) EXPECT_CLOSE(parameters[i].second.detach(), p[i], 1e-12) << parameters[i].first;
}

/// The least of lr times factor and the highest; one that does not decay although its name and shape would.
TEST(AdamW, KeepsAMixersPace) {
  const TrainConfig config = config_of({{"weight_decay", 0.3}, {"lr_scale", "b=0.1, e=0.1"}});
  const NamedTensors parameters = {{"a", parameter({3, 5}, 1)},
                                   {"b", parameter({3, 5}, 1)},
                                   {"c", parameter({3, 5}, 1)},
                                   {"D", parameter({3, 5}, 1)},
                                   {"e", parameter({3, 5}, 1)}};
  const std::map<std::string, Mixer::Pace> paces = {
      {"a", {0.02, false}}, {"b", {0.02, false}}, {"c", {0.05, true}}, {"D", {1, true}}};
  const std::vector<std::pair<double, double>> expected = {{0.02, 0}, {0.01, 0}, {0.05, 0.3}, {0.1, 0.3}, {0.01, 0.3}};
  AdamW optimizer(parameters, config, paces);
  const Tensor before = parameters[0].second.detach().clone(), gradient = normal({3, 5}, 2, at::kDouble);
  for (const auto& [name, tensor] : parameters) tensor.mutable_grad() = gradient.clone();
  optimizer.step(0.1);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto [lr, decay] = expected[i];
    const Tensor step = gradient / (gradient.abs() + 1e-8);
    EXPECT_CLOSE(parameters[i].second.detach(), before - lr * decay * before - lr * step, 1e-12) << parameters[i].first;
  }
}

TEST(AdamW, ParametersWithoutGradientStay) {
  const NamedTensors parameters = {{"a", parameter({3, 5}, 1)}, {"b", parameter({5, 3}, 2)}};
  AdamW optimizer(parameters, TrainConfig());
  const Tensor a = parameters[0].second.detach().clone(), b = parameters[1].second.detach().clone();
  parameters[0].second.mutable_grad() = at::ones_like(a);
  optimizer.step(0.1);
  EXPECT_FALSE(at::equal(parameters[0].second, a));
  EXPECT_TRUE(at::equal(parameters[1].second, b));
}

TEST(AdamW, ClipsTheNormOfAllGradientsTogether) {
  const NamedTensors parameters = {{"a", parameter({3, 5}, 1)}, {"b", parameter({7}, 2)}};
  AdamW optimizer(parameters, TrainConfig());
  const Tensor a = normal({3, 5}, 3, at::kDouble), b = normal({7}, 4, at::kDouble);
  const double norm = std::sqrt((a.square().sum() + b.square().sum()).item<double>());
  for (const double most : {norm / 3, norm * 2, 0.0}) {
    parameters[0].second.mutable_grad() = a.clone();
    parameters[1].second.mutable_grad() = b.clone();
    EXPECT_NEAR(optimizer.clip(most), norm, 1e-12);
    const double factor = most > 0 && most < norm ? most / norm : 1;
    EXPECT_CLOSE(parameters[0].second.grad(), a * factor, 1e-12);
    EXPECT_CLOSE(parameters[1].second.grad(), b * factor, 1e-12);
  }
}

TEST(AdamW, WeightDecayIsForMatricesThatMapActivations) {
  const Tensor matrix = at::zeros({3, 5}), vector = at::zeros({5});
  for (const char* name : {"a.q_proj.weight", "embed_tokens.weight", "lm_head.weight", "mlp.gate_proj.weight"}) {
    EXPECT_TRUE(decays(name, matrix)) << name;
    EXPECT_FALSE(decays(name, vector)) << name;
  }
  for (const char* name : {"a.W1", "a.b2", "a.ttt_norm_weight", "a.ttt_norm_bias", "a.learnable_ttt_lr_weight",
                           "a.A_log", "a.dt_bias", "a.D"}) {
    EXPECT_FALSE(decays(name, matrix)) << name;
  }
}

TEST(AdamW, RefusesRulesThatMeanNothing) {
  const std::vector<std::string> names = {"model.norm.weight", "model.layers.0.W1"};
  EXPECT_TRUE(throws_error([&] { lr_factors("model.norm.weigth=2", names); },
                           {"lr_scale", "did you mean 'model.norm.weight'"}));
  for (const char* bad : {"*", "*=", "*=-1", "=2", "*=fast", "*=inf"}) {
    EXPECT_TRUE(throws_error([&] { lr_factors(bad, names); }, {"lr_scale", "pattern=factor"})) << bad;
  }
  EXPECT_EQ(lr_factors("*=3, *.W1=.5", names), (std::vector<double>{3, 0.5}));
}

TEST(Schedule, WarmsUpThenFollowsItsCurve) {
  TrainConfig config = config_of({{"steps", 21}, {"lr", 0.8}, {"min_lr", 0.2}, {"warmup", 0.2}, {"decay", 0.25}});
  const auto at = [&](int64_t step) { return learning_rate(config, step); };
  for (const char* schedule : {"cosine", "constant", "wsd"}) {  // warmup: 5 steps
    config.schedule = schedule;
    EXPECT_NEAR(at(0), 0.8 / 5, 1e-15);
    EXPECT_NEAR(at(3), 0.8 * 4 / 5, 1e-15);
    EXPECT_NEAR(at(4), 0.8, 1e-15);
    EXPECT_NEAR(at(5), 0.8, 1e-15);
  }
  config.schedule = "constant";
  EXPECT_NEAR(at(20), 0.8, 1e-15);
  config.schedule = "cosine";
  EXPECT_NEAR(at(10), 0.2 + 0.3 * (1 + std::cos(M_PI / 3)), 1e-12);  // a third of the 15 steps to the last
  EXPECT_NEAR(at(20), 0.2, 1e-12);
  config.schedule = "wsd";  // falls over 6 steps
  EXPECT_NEAR(at(14), 0.8, 1e-15);
  EXPECT_NEAR(at(15), 0.7, 1e-12);
  EXPECT_NEAR(at(20), 0.2, 1e-12);
}

TEST(TrainConfig, RefusesWhatCannotBe) {
  EXPECT_TRUE(throws_error([] { config_of({{"lr", 0.1}, {"min_lr", 0.2}}); }, {"min_lr", "0.2", "0.1"}));
  EXPECT_TRUE(throws_error([] { config_of({{"schedule", "wsd"}, {"warmup", 0.6}, {"decay", 0.5}}); }, {"at most 1"}));
  EXPECT_TRUE(throws_error([] { config_of({{"batch_size", 1 << 20}, {"context", 1 << 24}}); }, {"GiB", "context"}));
  EXPECT_TRUE(throws_error([] { config_of({{"steps", 0}}); }, {"steps is 0"}));
  EXPECT_TRUE(throws_error([] { config_of({{"eps", 0}}); }, {"eps is 0", "from 1e-20 to 1"}));
  EXPECT_TRUE(throws_error([] { config_of({{"stepz", 3}}); }, {"did you mean 'steps'"}));
}

}  // namespace
}  // namespace lineal
