#include "backbones/language_model.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "core/registry.h"
#include "testing/testing.h"

namespace lineal {
namespace {

/// One layer of every mixer of the table.
LanguageModelConfig every_mixer() {
  LanguageModelConfig config;
  config.vocab_size = 29;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.pre_conv = true;
  config.tie_word_embeddings = false;
  std::string plan;
  for (const MixerSpec* spec : all<MixerSpec>()) plan += (plan.empty() ? "" : ", ") + spec->name;
  config.layers = parse_plan(plan);
  return config;
}

/// Every part of a block and of the model that a published family has beside those.
LanguageModelConfig every_part() {
  LanguageModelConfig config = every_mixer();
  config.norm = "layer";
  config.ffn = "channel_mix";
  config.max_positions = 50;
  config.embed_norm = true;
  config.final_norm_eps = 1e-3;
  config.layers = parse_plan("attention(head_dim=10, qkv_bias=true, out_bias=true)*2, rwkv4");
  return config;
}

class LanguageModels : public testing::TestWithParam<LanguageModelConfig (*)()> {};

constexpr const char* kWholeParts[] = {".position", ".place", ".code", ".count"};

TEST_P(LanguageModels, StatesAreFloat32UnlessTheModelIsFloat64) {
  LanguageModel model(GetParam()());
  for (const auto type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    model.to(type);
    for (const auto& [name, part] : model.initial_state(3).named()) {
      const bool whole = std::any_of(std::begin(kWholeParts), std::end(kWholeParts),
                                     [path = "." + name](const char* end) { return path.ends_with(end); });
      const auto expected = whole ? at::kLong : type == at::kDouble ? at::kDouble : at::kFloat;
      EXPECT_EQ(part.scalar_type(), expected) << name << " of a model in " << type;
    }
  }
}

TEST_P(LanguageModels, AStepIsForwardOnRowsOfAPool) {
  at::manual_seed(3);
  LanguageModel model(GetParam()());
  at::NoGradGuard no_grad;
  const int64_t P = 6;
  State pool = model.initial_state(P);
  model.forward(at::arange(P * 4).remainder(29).reshape({P, 4}), pool);
  for (const auto& index : {std::vector<int64_t>{5, 0, 2}, {1}, {2, 4}}) {
    const Rows rows(index, P);
    const Tensor tokens = at::arange(rows.count()) * 7 + 1;
    State alone = pool.rows(rows.index());
    const Tensor expected = model.forward(tokens.unsqueeze(1), alone).squeeze(1);
    EXPECT_CLOSE(model.step(tokens, pool, rows), expected, 1e-6);
    const auto found = pool.rows(rows.index()).named(), wanted = alone.named();
    for (size_t i = 0; i < found.size(); ++i) EXPECT_CLOSE(found[i].second, wanted[i].second, 1e-6) << found[i].first;
  }
  const Rows rows({1, 3}, P);
  EXPECT_ERROR(model.step(at::tensor({1, 2, 3}), pool, rows), "tokens is [3], expected [B=2]");
  EXPECT_ERROR(model.step(at::tensor({1, 29}), pool, rows), "token id 29 at [1, 0] is out of range, expected 0 to 28");
}

Tensor random_state() { return at::detail::getDefaultCPUGenerator().get_state(); }

/// What a model draws is what its parameters need, and nothing when they are to be loaded.
TEST_P(LanguageModels, ParametersAreDrawnOnce) {
  at::manual_seed(3);
  const Tensor start = random_state();
  LanguageModel model(GetParam()(), Parameters::empty);
  EXPECT_TRUE(random_state().equal(start));
  at::NoGradGuard no_grad;
  for (Tensor& parameter : model.parameters()) parameter.fill_(NAN);
  model.reset_parameters();
  const Tensor end = random_state();
  at::manual_seed(3);
  const LanguageModel other(GetParam()());
  EXPECT_TRUE(random_state().equal(end));
  const auto expected = other.named_parameters();
  for (const auto& item : model.named_parameters()) {
    EXPECT_EQ(bit_difference(item.value(), *expected.find(item.key())), "") << item.key();
    EXPECT_TRUE(item.value().isfinite().all().item<bool>()) << item.key();
  }
}

INSTANTIATE_TEST_SUITE_P(All, LanguageModels, testing::Values(every_mixer, every_part),
                         [](const auto& info) { return info.index == 0 ? "every_mixer" : "every_part"; });

/// A norm of half of x, and 4 times its epsilon on x, are one.
TEST(LanguageModel, RescalingQuadruplesEpsilons) {
  LanguageModelConfig config;
  config.hidden_size = 6, config.intermediate_size = 0, config.rms_norm_eps = 0.02, config.final_norm_eps = 0.03;
  config.layers = parse_plan("identity*2");
  config.rescale_every = 2;
  LanguageModelConfig plain = config;
  plain.rescale_every = 0, plain.final_norm_eps = 0.12;
  at::manual_seed(3);
  LanguageModel model(config);
  at::manual_seed(3);
  LanguageModel other(plain);
  at::NoGradGuard no_grad;
  const Tensor tokens = at::arange(10).reshape({2, 5});
  const auto logits = [&](LanguageModel& net) {
    State state = net.initial_state(2);
    return net.forward(tokens, state);
  };
  EXPECT_CLOSE(logits(model), logits(other), 1e-6);
  config.rescale_every = 1;
  at::manual_seed(3);
  LanguageModel sooner(config);
  EXPECT_GT((logits(sooner) - logits(other)).abs().max().item<double>(), 1e-4);
}

/// What a model has beside the fields of before leaves its config.json, and so the fingerprint of its sessions, alone.
TEST(LanguageModel, FieldsThatCameLaterAreWrittenWhereTheyAreUsed) {
  LanguageModelConfig config;
  config.layers = parse_plan("attention");
  const Json plain = config.to_json();
  for (const char* name : {"norm", "ffn", "activation", "max_positions", "final_norm_eps", "rescale_every"}) {
    EXPECT_FALSE(plain.contains(name)) << name;
  }
  for (const char* name : {"head_dim", "qkv_bias", "rotary_dims", "truncate"}) {
    EXPECT_FALSE(plain["layers"][0].contains(name)) << name;
  }
  const Json used = every_part().to_json();
  EXPECT_EQ(used["max_positions"], 50);
  EXPECT_EQ(used["layers"][0]["head_dim"], 10);
  EXPECT_EQ(LanguageModelConfig::from_json(used, "test").to_json(), used);
}

}  // namespace
}  // namespace lineal
