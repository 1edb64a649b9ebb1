#include "backbones/recompute.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "backbones/language_model.h"
#include "testing/testing.h"

namespace lineal {
namespace {

std::vector<Tensor> gradients(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs) {
  std::vector<Tensor> weights;
  for (size_t i = 0; i < outputs.size(); ++i) weights.push_back(normal(outputs[i].sizes(), 50 + i, at::kDouble));
  return torch::autograd::grad(outputs, inputs, weights);
}

TEST(Recompute, GradientsOfInputsParametersAndEveryOutput) {
  const std::vector<Tensor> inputs = {normal({3, 5}, 1, at::kDouble).requires_grad_(),
                                      normal({3, 7}, 2, at::kDouble).requires_grad_()};
  const Tensor w = normal({5, 7}, 3, at::kDouble).requires_grad_();
  int calls = 0;
  const auto f = [&](const std::vector<Tensor>& in) {
    ++calls;
    const Tensor y = at::matmul(in[0], w).tanh();
    return std::vector<Tensor>{y * in[1], y.cumsum(0)};
  };
  const auto expected = gradients(f(inputs), {inputs[0], inputs[1], w});
  const auto outputs = recompute(f, inputs, {w});
  EXPECT_EQ(calls, 2);
  const auto found = gradients(outputs, {inputs[0], inputs[1], w});
  EXPECT_EQ(calls, 3);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(bit_difference(found[i], expected[i]), "") << i;
}

TEST(Recompute, RandomNumbersAreReplayedAndTheGeneratorGoesOn) {
  const Tensor x = at::ones({31}, at::kDouble).requires_grad_();
  const auto f = [](const std::vector<Tensor>& in) { return std::vector<Tensor>{at::dropout(in[0], 0.5, true)}; };
  const Tensor y = recompute(f, {x}, {})[0];
  const Tensor between = at::rand({3});
  const Tensor gradient = torch::autograd::grad({y.sum()}, {x})[0];
  EXPECT_EQ(bit_difference(gradient, y.detach()), "");  // of ones: the mask and its scale
  EXPECT_FALSE(at::equal(at::rand({3}), between));
}

TEST(Recompute, NothingInsideIsKept) {
  Tensor inside;
  const Tensor x = normal({3, 5}, 1, at::kDouble).requires_grad_();
  const auto f = [&](const std::vector<Tensor>& in) {
    inside = in[0].exp();
    return std::vector<Tensor>{inside.sin()};
  };
  const auto y = recompute(f, {x}, {});
  EXPECT_EQ(inside.use_count(), 1);
  EXPECT_FALSE(inside.requires_grad());
}

TEST(Recompute, AutocastIsAsItWasAndLeavesNoCopies) {
  const Tensor x = normal({3, 5}, 1), w = normal({7, 5}, 2).requires_grad_();
  const auto f = [&](const std::vector<Tensor>& in) { return std::vector<Tensor>{at::linear(in[0], w)}; };
  const auto run = [&] {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_cache_enabled(false);
    Tensor y = recompute(f, {x}, {w})[0];
    at::autocast::set_autocast_cache_enabled(true);
    at::autocast::set_autocast_enabled(at::kCPU, false);
    return y;
  };
  const Tensor y = run();
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  const Tensor gradient = torch::autograd::grad({y.sum()}, {w})[0];
  EXPECT_EQ(gradient.scalar_type(), at::kFloat);
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  {
    at::NoGradGuard no_grad;
    w.zero_();
  }
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const Tensor after = at::linear(x, w);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_TRUE(after.eq(0).all().item<bool>()) << "a copy of w from before its update was used";
}

TEST(Recompute, ModelGivesTheSameGradientsThroughStateParametersAndLosses) {
  LanguageModelConfig config;
  config.vocab_size = 29;
  config.hidden_size = 12;
  config.intermediate_size = 20;
  config.initializer_range = 0.3;
  config.layers =
      parse_plan("ttt_linear(share_qk=true), identity, ttt_mlp, vq_attention(num_codes=5,window=4,chunk_size=3)",
                 {{"num_attention_heads", 3}, {"mini_batch_size", 4}});
  LanguageModel model(config);
  model.to(at::kDouble);
  const Tensor tokens = normal({2, 11}, 3).mul(1000).to(at::kLong).remainder(29);
  std::vector<std::vector<Tensor>> results;
  for (const bool again : {false, true}) {
    model.recompute = again;
    std::vector<Tensor> inputs = model.parameters();
    State state = model.initial_state(2).map([&](const Tensor& part) -> Tensor {
      if (!part.is_floating_point()) return part;
      return inputs.emplace_back((part.detach() + 0.1).requires_grad_());
    });
    std::vector<Tensor> outputs = {model.forward(tokens, state)};
    for (const auto& [name, part] : state.named()) {
      if (part.requires_grad()) outputs.push_back(part);
    }
    const auto& losses = model.blocks()[3]->mixer().losses;
    ASSERT_EQ(losses.size(), 1u);
    outputs.push_back(losses[0].second);
    results.push_back(outputs);
    std::vector<Tensor> weights;
    for (size_t i = 0; i < outputs.size(); ++i) weights.push_back(normal(outputs[i].sizes(), 50 + i, at::kDouble));
    for (const Tensor& gradient : torch::autograd::grad(outputs, inputs, weights, {}, false, /*allow_unused=*/true)) {
      results.back().push_back(gradient.defined() ? gradient : at::zeros({1}, at::kDouble));
    }
  }
  ASSERT_EQ(results[0].size(), results[1].size());
  for (size_t i = 0; i < results[0].size(); ++i) EXPECT_CLOSE(results[1][i], results[0][i], 1e-13) << i;
}

}  // namespace
}  // namespace lineal
