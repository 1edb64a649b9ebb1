#include "eval/extrapolation.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "testing/testing.h"

namespace lineal {
namespace {

LanguageModelConfig config_of(const std::string& plan) {
  LanguageModelConfig config;
  config.vocab_size = 23;
  config.hidden_size = 24;
  config.intermediate_size = 0;
  config.initializer_range = 0.5;
  config.layers = parse_plan(plan);
  return config;
}

using Sorted = nlohmann::json;  // compares fields in any order

/// The options that differ from those of the plan, of each layer.
std::vector<Sorted> changes(const std::string& plan, const Extrapolation& how) {
  const auto before = config_of(plan), after = extrapolated(before, how);
  std::vector<Sorted> result;
  for (size_t i = 0; i < before.layers.size(); ++i) {
    EXPECT_EQ(before.layers[i].mixer, after.layers[i].mixer);
    Sorted changed = Sorted::object();
    for (const auto& [name, value] : after.layers[i].options.items()) {
      if (!before.layers[i].options.contains(name) || before.layers[i].options[name] != value)
        changed[name] = Sorted(value);
    }
    result.push_back(changed);
  }
  return result;
}

TEST(Extrapolation, ChangesAttentionLayersAlone) {
  using List = std::vector<Sorted>;
  const std::string plan = "attention, ttt_linear, attention(num_key_value_heads=2)";
  const auto of = [&](const std::string& method, int64_t window = 0) {
    return changes(plan, {.method = method, .factor = 8, .original_length = 100, .window = window, .sinks = 3});
  };
  const auto both = [](const Sorted& layer) { return List{layer, Sorted::object(), layer}; };
  const auto with = [](Sorted layer) {
    layer["original_length"] = 100;
    return layer;
  };
  EXPECT_EQ(of("rope"), both(with({{"factor", 8.0}})));
  EXPECT_EQ(of("yarn"), both(with({{"position", "yarn"}, {"factor", 8.0}})));
  EXPECT_EQ(of("rerope"), both(with({{"position", "rerope"}, {"factor", 8.0}, {"rerope_window", 50}})));
  EXPECT_EQ(of("window"), both({{"sliding_window", 100}}));
  EXPECT_EQ(of("window", 9), both({{"sliding_window", 9}}));
  EXPECT_EQ(of("sink"), both({{"sliding_window", 97}, {"sink_tokens", 3}}));
  EXPECT_EQ(of("key_norm"), both({{"key_norm", true}}));
  EXPECT_EQ(of("log_n"), both(with({{"log_n", true}})));
  EXPECT_EQ(of("rerope+log_n", 7),
            both(with({{"position", "rerope"}, {"factor", 8.0}, {"rerope_window", 7}, {"log_n", true}})));
  EXPECT_EQ(of("hwfa"),
            (List{{{"sliding_window", 75}}, Sorted::object(), with({{"position", "none"}, {"log_n", true}})}));
  // The longest distance, 800 - 30 beyond the window at 1 / factor each, is 100.
  const auto leaky = of("leaky_rerope", 30);
  EXPECT_NEAR(leaky[0]["factor"].get<double>(), (800. - 30) / (100 - 30), 1e-12);
}

TEST(Extrapolation, EveryMethodReadsWithTheSameParameters) {
  at::NoGradGuard no_grad;
  LanguageModel model(config_of("attention(num_attention_heads=4), performer(num_features=5), attention"));
  const Tensor tokens = at::randint(23, {2, 31}, at::kLong);
  const auto read = [&](LanguageModel& reader) {
    State state = reader.initial_state(2);
    return reader.forward(tokens, state);
  };
  const Tensor plain = read(model);
  for (const auto& method : extrapolation_methods()) {
    const auto other = extrapolated(model, {.method = method, .factor = 4, .original_length = 9, .sinks = 2});
    const auto parameters = model.named_parameters();
    for (const auto& item : other->named_parameters()) {
      EXPECT_EQ(item.value().data_ptr(), parameters[item.key()].data_ptr()) << item.key();
    }
    const Tensor logits = read(*other);
    EXPECT_EQ(difference(logits, plain, 1e-3).empty(), method == "rope") << method;
  }
  EXPECT_CLOSE(read(model), plain, 0);
}

TEST(Extrapolation, RefusesWhatCannotBe) {
  const auto config = config_of("attention, identity");
  EXPECT_ERROR(extrapolated(config, {.method = "yarm"}), "eval: unknown position 'yarm'; did you mean 'yarn'");
  EXPECT_ERROR(extrapolated(config, {.method = "yarn+yarm"}), "unknown position 'yarm'");
  EXPECT_ERROR(extrapolated(config_of("identity"), {.method = "yarn"}), "the model has no attention layer");
  EXPECT_ERROR(extrapolated(config, {.method = "window"}), "position window: the model does not say how many tokens");
  EXPECT_ERROR(extrapolated(config, {.method = "hwfa", .original_length = 9}), "the model has one attention layer");
  EXPECT_ERROR(extrapolated(config, {.method = "leaky_rerope", .original_length = 9, .window = 9}),
               "the window is 9, expected less than the original length 9");
  EXPECT_TRUE(can_extrapolate(config));
  EXPECT_FALSE(can_extrapolate(config_of("identity, ttt_linear")));
}

}  // namespace
}  // namespace lineal
