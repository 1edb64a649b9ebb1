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

TEST(LanguageModel, StatesAreFloat32UnlessTheModelIsFloat64) {
  LanguageModel model(every_mixer());
  for (const auto type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    model.to(type);
    for (const auto& [name, part] : model.initial_state(3).named()) {
      const auto expected = name.ends_with(".position") ? at::kLong : type == at::kDouble ? at::kDouble : at::kFloat;
      EXPECT_EQ(part.scalar_type(), expected) << name << " of a model in " << type;
    }
  }
}

Tensor random_state() { return at::detail::getDefaultCPUGenerator().get_state(); }

/// What a model draws is what its parameters need, and nothing when they are to be loaded.
TEST(LanguageModel, ParametersAreDrawnOnce) {
  at::manual_seed(3);
  const Tensor start = random_state();
  LanguageModel model(every_mixer(), Parameters::empty);
  EXPECT_TRUE(random_state().equal(start));
  at::NoGradGuard no_grad;
  for (Tensor& parameter : model.parameters()) parameter.fill_(NAN);
  model.reset_parameters();
  const Tensor end = random_state();
  at::manual_seed(3);
  const LanguageModel other(every_mixer());
  EXPECT_TRUE(random_state().equal(end));
  const auto expected = other.named_parameters();
  for (const auto& item : model.named_parameters()) {
    EXPECT_EQ(bit_difference(item.value(), *expected.find(item.key())), "") << item.key();
    EXPECT_TRUE(item.value().isfinite().all().item<bool>()) << item.key();
  }
}

}  // namespace
}  // namespace lineal
