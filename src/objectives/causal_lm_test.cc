#include <ATen/ATen.h>

#include "core/registry.h"
#include "objectives/objective.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t kVocabulary = 29;

std::shared_ptr<LanguageModel> small_model() {
  LanguageModelConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 12;
  config.intermediate_size = 20;
  config.initializer_range = 0.3;
  config.layers = parse_plan("ttt_linear*2", {{"num_attention_heads", 3}, {"mini_batch_size", 4}});
  return std::make_shared<LanguageModel>(config);
}

Batch batch_of(const Tensor& mask) {
  const auto B = mask.size(0), T = mask.size(1);
  const Tensor tokens = normal({B, T + 1}, 7).mul(1000).to(at::kLong).remainder(kVocabulary);
  return {tokens.slice(1, 0, T), tokens.slice(1, 1, T + 1), mask, {}};
}

double loss_of(const std::shared_ptr<LanguageModel>& model, const Batch& batch) {
  const at::NoGradGuard no_grad;
  State state = model->initial_state(batch.size());
  return find<ObjectiveSpec>("causal_lm").players(model).front().loss(batch, state).item<double>();
}

TEST(CausalLm, MeanOverTheTargetsThatCount) {
  const auto model = small_model();
  const Tensor mask = (normal({3, 17}, 8) > -0.3).to(at::kFloat);
  const Batch batch = batch_of(mask);
  const at::NoGradGuard no_grad;
  State state = model->initial_state(3);
  const Tensor log_p = model->forward(batch.inputs, state).to(at::kDouble).log_softmax(2);
  double sum = 0, count = 0;
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t t = 0; t < 17; ++t) {
      if (mask[b][t].item<double>() == 0) continue;
      sum -= log_p[b][t][batch.targets[b][t]].item<double>();
      ++count;
    }
  }
  ASSERT_LT(count, 3 * 17);
  EXPECT_NEAR(loss_of(model, batch), sum / count, 1e-5);
}

TEST(CausalLm, TargetsThatDoNotCountChangeNothing) {
  const auto model = small_model();
  Batch batch = batch_of((normal({2, 11}, 9) > 0).to(at::kFloat));
  const double before = loss_of(model, batch);
  batch.targets = at::where(batch.mask > 0, batch.targets, (batch.targets + 5).remainder(kVocabulary));
  EXPECT_EQ(loss_of(model, batch), before);
  EXPECT_EQ(loss_of(model, batch_of(at::zeros({2, 11}))), 0);
}

TEST(CausalLm, CollectsThePacesOfMixers) {
  LanguageModelConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 12;
  config.layers = parse_plan("ttt_linear(num_attention_heads=3), s4(state_size=4, lr=0.003), s4d(state_size=4)");
  const Player player = find<ObjectiveSpec>("causal_lm").players(std::make_shared<LanguageModel>(config)).front();
  std::map<std::string, double> highest;
  for (const auto& [name, pace] : player.paces) {
    EXPECT_FALSE(pace.decays) << name;
    highest[name] = pace.highest_lr;
  }
  std::map<std::string, double> expected;
  for (const char* leaf : {"inv_dt", "A_real", "A_imag", "B", "P"}) {
    expected[text("model.layers.1.seq_modeling_block.kernel.", leaf)] = 0.003;
    if (std::string(leaf) != "P") expected[text("model.layers.2.seq_modeling_block.kernel.", leaf)] = 1e-3;
  }
  EXPECT_EQ(highest, expected);
  for (const auto& [name, lr] : expected) {
    const auto named = [&](const auto& parameter) { return parameter.first == name; };
    EXPECT_EQ(std::count_if(player.parameters.begin(), player.parameters.end(), named), 1) << name;
  }
}

}  // namespace
}  // namespace lineal
