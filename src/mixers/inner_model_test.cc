// docs/inner_model.md, compiled and run.
#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"
#include "core/file.h"
#include "mixers/ttt.h"
#include "testing/testing.h"

namespace lineal {

// clang-format off
class Gated : public InnerModel {
 public:
  std::vector<Weight> weights(int64_t K) const override { return {{"U", {K, K}, 0.02}, {"G", {K, K}, 0.02}}; }

  Tensor forward(const Tensor& x, const Weights& W) const override {
    return at::matmul(x, W[0]) * at::matmul(x, W[1]).sigmoid();
  }
};

extern const MixerSpec ttt_gated_spec;
const MixerSpec ttt_gated_spec = {
    .name = "ttt_gated",
    .help = "TTT layer whose state is a gated linear model",
    .config = make_config<TTTConfig>,
    .make = [](const Config& config, int64_t D) -> std::shared_ptr<Mixer> {
      return std::make_shared<TTT>("ttt_gated", dynamic_cast<const TTTConfig&>(config), D, std::make_unique<Gated>());
    },
};
// clang-format on

namespace {

TEST(InnerModel, TheDocumentShowsThisCode) {
  const std::string document = read_file(std::string(LINEAL_TESTDATA) + "/../docs/inner_model.md");
  const std::string source = read_file(std::string(LINEAL_TESTDATA) + "/../src/mixers/inner_model_test.cc");
  const std::string fence = "```cpp\n";
  int blocks = 0;
  for (size_t at = 0; (at = document.find(fence, at)) != std::string::npos; ++blocks) {
    at += fence.size();
    const std::string block = document.substr(at, document.find("```", at) - at);
    EXPECT_NE(source.find(block), std::string::npos) << "not in this file:\n" << block;
  }
  EXPECT_EQ(blocks, 2);
}

TEST(InnerModel, LearnsDecodesAndHasGradients) {
  TTTConfig config;
  config.num_attention_heads = 2;
  config.mini_batch_size = 4;
  auto layer = ttt_gated_spec.make(config, 12);
  layer->to(at::kDouble);
  layer->reset_parameters(0.3);
  const Tensor x = normal({2, 11, 12}, 1, at::kDouble);
  {
    at::NoGradGuard no_grad;
    State whole = layer->initial_state(2), stepped = layer->initial_state(2);
    const Tensor y = layer->forward(x, whole);
    std::vector<Tensor> steps;
    for (int64_t t = 0; t < 11; ++t) steps.push_back(layer->forward(x.slice(1, t, t + 1), stepped));
    EXPECT_CLOSE(at::cat(steps, 1), y, 1e-10);
    EXPECT_GT((whole.at("U") - layer->initial_state(2).at("U")).abs().max().item<double>(), 1e-4) << "nothing learned";
  }
  State state = layer->initial_state(2);
  layer->forward(x, state).square().sum().backward();
  for (const char* name : {"U", "G", "k_proj.weight", "learnable_ttt_lr_weight", "ttt_norm_weight"}) {
    SCOPED_TRACE(name);
    const Tensor parameter = layer->named_parameters()[name];
    const Tensor gradient = parameter.grad().clone();
    const Tensor direction = normal(parameter.sizes(), 7, at::kDouble);
    at::NoGradGuard no_grad;
    const double step = 1e-5;
    const Tensor start = parameter.detach().clone();
    const auto value = [&](double sign) {
      layer->named_parameters()[name].copy_(start + sign * step * direction);
      State fresh = layer->initial_state(2);
      return layer->forward(x, fresh).square().sum().item<double>();
    };
    const double finite = (value(1) - value(-1)) / (2 * step);
    value(0);
    EXPECT_NEAR((gradient * direction).sum().item<double>(), finite, 1e-5 * std::max(1.0, std::abs(finite)));
  }
}

/// f(x) = x W without biases, its dual as ttt_linear.cc writes it. `copies_dual` false leaves the dual out.
class Plain : public InnerModel {
 public:
  explicit Plain(bool copies_dual) : copies_dual_(copies_dual) {}
  std::vector<Weight> weights(int64_t K) const override { return {{"W", {K, K}, 0.02}}; }
  Tensor forward(const Tensor& x, const Weights& W) const override { return at::matmul(x, W[0]); }
  bool has_dual() const override { return copies_dual_; }
  Tensor dual(const InnerBatch& batch, const InnerNorm& norm, const Weights& W, Weights& D) const override {
    ++calls;
    const Tensor G = norm.loss_gradient(forward(batch.k, W), batch.target) * batch.eta;
    Tensor moved = at::matmul(batch.qk, G);
    if (D[0].defined()) moved = moved + forward(batch.q, D);
    const Tensor sum = at::matmul(batch.k.transpose(-1, -2), G);
    D[0] = D[0].defined() ? D[0] + sum : sum;
    return forward(batch.q, W) - batch.scale * moved;
  }

  inline static int calls = 0;

 private:
  bool copies_dual_;
};

std::shared_ptr<TTT> plain_layer(const std::string& form, bool copies_dual) {
  TTTConfig config;  // whose `bias`, on by default, is not this inner model's
  config.num_attention_heads = 2;
  config.mini_batch_size = 4;
  config.form = form;
  auto layer = std::make_shared<TTT>("ttt_plain", config, 12, std::make_unique<Plain>(copies_dual));
  at::manual_seed(5);
  layer->reset_parameters(0.3);
  layer->to(at::kDouble);
  return layer;
}

TEST(InnerModel, ADualWithoutBiasesIsThePrimal) {
  at::NoGradGuard no_grad;
  const Tensor x = normal({2, 11, 12}, 1, at::kDouble);
  const auto run = [&](const std::string& form) {
    const auto layer = plain_layer(form, /*copies_dual=*/true);
    State state = layer->initial_state(2);
    return layer->forward(x, state, {});
  };
  const Tensor primal = run("primal");
  EXPECT_EQ(Plain::calls, 0);
  EXPECT_CLOSE(run("auto"), primal, 1e-12);
  EXPECT_GT(Plain::calls, 0) << "auto takes the dual where there is one";
  EXPECT_CLOSE(run("dual"), primal, 1e-12);
}

TEST(InnerModel, NoDualIsSaidWhenAskedFor) {
  EXPECT_ERROR(plain_layer("dual", /*copies_dual=*/false),
               "ttt_plain: form is dual and the inner model has none, expected form auto or primal");
  plain_layer("auto", /*copies_dual=*/false);
  plain_layer("primal", /*copies_dual=*/false);
}

}  // namespace
}  // namespace lineal
