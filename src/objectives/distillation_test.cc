#include "objectives/distillation.h"

#include <ATen/ATen.h>

#include <cmath>

#include "objectives/token_loss.h"
#include "testing/testing.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

std::shared_ptr<LanguageModel> model_of(const std::string& plan, uint64_t seed, int64_t N = 29, int64_t D = 12) {
  at::manual_seed(seed);
  LanguageModelConfig config;
  config.vocab_size = N, config.hidden_size = D, config.intermediate_size = D, config.initializer_range = 0.3;
  config.layers = parse_plan(plan, {{"num_attention_heads", 2}});
  auto model = std::make_shared<LanguageModel>(config);
  model->to(at::kDouble);
  return model;
}

/// Two rows, a document that starts in one, some tokens that do not count.
Batch batch_of(int64_t T, int64_t N = 29) {
  const Tensor tokens = normal({2, T + 1}, 7).abs().mul(1000).to(at::kLong).remainder(N);
  Batch batch{tokens.slice(1, 0, T), tokens.slice(1, 1), (normal({2, T}, 8) > -0.7).to(at::kFloat), {}};
  batch.segments.starts = at::zeros({2, T}, at::kBool);
  batch.segments.starts[0][T / 3] = true;
  return batch;
}

std::vector<Tensor> gradients(const Tensor& loss, const Player& player) {
  std::vector<Tensor> parameters;
  for (const auto& [_, parameter] : player.parameters) parameters.push_back(parameter);
  auto found = torch::autograd::grad({loss}, parameters, {}, {}, false, /*allow_unused=*/true);
  for (size_t i = 0; i < found.size(); ++i) {
    if (!found[i].defined()) found[i] = at::zeros_like(parameters[i]);
  }
  return found;
}

TEST(Distillation, ExpectsWhatTheTeacherExpects) {
  const auto teacher = model_of("attention*2", 1), model = model_of("linear_attention*3", 2);
  const Player player = distillation_player(model, {teacher, 0}).front();
  EXPECT_EQ(player.begin_step(0), "distill");
  const Batch batch = batch_of(11);
  State state = model->initial_state(2), own = state, theirs = teacher->initial_state(2);
  const Tensor loss = player.loss(batch, state);

  const Tensor q = model->forward(batch.inputs, own, batch.segments).log_softmax(2);
  const Tensor p = teacher->forward(batch.inputs, theirs, batch.segments).log_softmax(2).detach();
  const Tensor expected = ((p.exp() * (p - q)).sum(2) * batch.mask).sum() / batch.mask.sum();
  EXPECT_CLOSE(loss, expected, 1e-6);  // logits are compared in float32
  const auto found = gradients(loss, player), wanted = gradients(expected, player);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_CLOSE(found[i], wanted[i], 1e-5) << player.parameters[i].first;

  State other = model->initial_state(2);
  EXPECT_CLOSE(player.validation(batch, other), token_player(model)[0].loss(batch, own = model->initial_state(2)),
               1e-12);
}

TEST(Distillation, OfManyTokensInPieces) {
  const int64_t N = int64_t{1} << 20, D = 2;  // eight rows at a time
  const auto teacher = model_of("identity", 1, N, D), model = model_of("identity", 2, N, D);
  const Player player = distillation_player(model, {teacher, 0}).front();
  player.begin_step(0);
  const Batch batch = batch_of(5, N);
  State state = model->initial_state(2), own = state, theirs = teacher->initial_state(2);
  const Tensor loss = player.loss(batch, state);
  const Tensor q = model->forward(batch.inputs, own, batch.segments).log_softmax(2);
  const Tensor p = teacher->forward(batch.inputs, theirs, batch.segments).log_softmax(2).detach();
  const Tensor expected = ((p.exp() * (p - q)).sum(2) * batch.mask).sum() / batch.mask.sum();
  EXPECT_CLOSE(loss, expected, 1e-5);
  const auto found = gradients(loss, player), wanted = gradients(expected, player);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_CLOSE(found[i], wanted[i], 1e-5) << player.parameters[i].first;
}

TEST(Distillation, LayersLearnFromWhatTheTeachersRead) {
  const auto teacher = model_of("attention*2", 1), model = model_of("linear_attention*2", 2);
  const Player player = distillation_player(model, {teacher, 3}).front();
  EXPECT_EQ(player.begin_step(2), "match");
  const Batch batch = batch_of(11);
  State state = model->initial_state(2);
  const Tensor loss = player.loss(batch, state);

  State theirs = teacher->initial_state(2);
  Tensor x = teacher->embed(batch.inputs, theirs, batch.segments).detach(), expected = at::zeros({}, at::kDouble);
  const Tensor counted = batch.mask.unsqueeze(2);
  for (size_t i = 0; i < 2; ++i) {
    State a = teacher->blocks()[i]->initial_state(2), b = model->blocks()[i]->initial_state(2);
    const Tensor y = teacher->blocks()[i]->forward(x, a, batch.segments).detach();
    const Tensor found = model->blocks()[i]->forward(x, b, batch.segments);
    expected = expected + ((found - y) * counted).square().sum() / ((y - x) * counted).square().sum() / 2;
    x = y;
  }
  EXPECT_CLOSE(loss, expected, 1e-12);
  const auto found = gradients(loss, player), wanted = gradients(expected, player);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_CLOSE(found[i], wanted[i], 1e-10) << player.parameters[i].first;
  EXPECT_EQ(player.begin_step(3), "distill");
}

/// The teacher's state goes on with the model's: pieces have the losses of the whole.
TEST(Distillation, GoesOnFromCallToCall) {
  const auto teacher = model_of("attention*2", 1), model = model_of("linear_attention*2", 2);
  for (const int64_t match_steps : {0, 1}) {
    const Player player = distillation_player(model, {teacher, match_steps}).front();
    player.begin_step(0);
    Batch batch = batch_of(12);
    batch.mask.fill_(1);
    State whole = model->initial_state(2), carried = whole;
    const double expected = player.loss(batch, whole).item<double>();
    double sum = 0;
    for (int64_t t = 0; t < 12; t += 4) sum += player.loss(batch.slice(t, t + 4), carried).item<double>() / 3;
    if (match_steps == 0) {
      EXPECT_NEAR(sum, expected, 1e-6);
    }
    const auto parts = whole.named(), found = carried.named();
    ASSERT_EQ(found.size(), parts.size());
    for (size_t i = 0; i < parts.size(); ++i) EXPECT_CLOSE(found[i].second, parts[i].second, 1e-9) << parts[i].first;
  }
}

TEST(Distillation, RefusesWhatCannotBe) {
  const auto model = model_of("linear_attention*2", 2);
  EXPECT_ERROR(distillation_player(model, {model_of("attention*2", 1, 30), 0}),
               "the teacher has 30 tokens, the model 29");
  EXPECT_ERROR(distillation_player(model, {model_of("attention*3", 1), 1}), "3 layers of width 12, the model 2");
  EXPECT_ERROR(distillation_player(model, {model_of("attention*2", 1, 29, 16), 1}), "--match-steps 0");
  distillation_player(model, {model_of("attention*3", 1, 29, 16), 0});
}

}  // namespace
}  // namespace lineal
