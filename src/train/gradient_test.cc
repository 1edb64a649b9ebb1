#include "train/gradient.h"

#include <ATen/ATen.h>

#include <limits>

#include "core/registry.h"
#include "testing/testing.h"
#include "testing/throws_error.h"
#include "train/trainer.h"

namespace lineal {
namespace {

constexpr int64_t kVocabulary = 29;

std::shared_ptr<LanguageModel> small_model(const std::string& plan, at::ScalarType type = at::kDouble) {
  LanguageModelConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 12;
  config.intermediate_size = 20;
  config.initializer_range = 0.3;  // large, so that gradients through the state are too
  config.tie_word_embeddings = false;
  config.layers = parse_plan(plan, {{"num_attention_heads", 3}, {"mini_batch_size", 4}});
  auto model = std::make_shared<LanguageModel>(config);
  model->to(type);
  return model;
}

/// Random tokens; row 0 has a document that starts mid-way, some targets do not count.
Batch batch_of(int64_t B, int64_t T, bool documents = true) {
  const Tensor tokens = normal({B, T + 1}, 7).mul(1000).to(at::kLong).remainder(kVocabulary);
  Batch batch{tokens.slice(1, 0, T), tokens.slice(1, 1, T + 1), (normal({B, T}, 8) > -0.7).to(at::kFloat), {}};
  if (!documents) return batch;
  Tensor starts = at::zeros({B, T}, at::kBool);
  starts[0][T / 3] = true;
  batch.segments = {starts};
  return batch;
}

Player player_of(const std::shared_ptr<LanguageModel>& model) {
  return find<ObjectiveSpec>("causal_lm").players(model).front();
}

std::vector<Tensor> take_gradients(const Player& player) {
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : player.parameters) {
    gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::zeros_like(parameter));
    parameter.mutable_grad() = Tensor();
  }
  return gradients;
}

struct Found {
  double sum;
  std::vector<Tensor> gradients;
};

Found gradients_of(const std::shared_ptr<LanguageModel>& model, const Batch& batch, int64_t length,
                   bool differentiable) {
  const Player player = player_of(model);
  SegmentRun run;
  run.length = length;
  run.differentiable = differentiable;
  const double sum = add_gradient(player, *model, batch, 31, run);
  return {sum, take_gradients(player)};
}

TEST(Gradient, DifferentiableSegmentsEqualTheWhole) {
  for (const char* plan :
       {"ttt_linear*2", "ttt_mlp, identity, ttt_linear(share_qk=true)", "delta_net, linear_attention",
        "vq_attention(num_codes=5, window=4, chunk_size=3, commitment=0)*2"}) {
    const auto model = small_model(plan);
    const Batch batch = batch_of(2, 23);
    const Player player = player_of(model);
    State state = model->initial_state(2);
    const double count = batch.mask.sum().item<double>();
    const Tensor loss = player.loss(batch, state);
    (loss * (count / 31)).backward();
    const auto whole = take_gradients(player);
    for (const bool recompute : {false, true}) {
      model->recompute = recompute;
      for (const int64_t length : {5, 8, 23}) {
        const Found found = gradients_of(model, batch, length, true);
        EXPECT_NEAR(found.sum, loss.item<double>() * count, 1e-10);
        for (size_t i = 0; i < whole.size(); ++i) {
          EXPECT_CLOSE(found.gradients[i], whole[i], 1e-11)
              << plan << " " << length << " " << player.parameters[i].first;
        }
      }
    }
  }
}

TEST(Gradient, MoreSegmentsThanStatesAreKept) {
  const auto model = small_model("ttt_linear");
  const Batch batch = batch_of(1, 83);
  const Found whole = gradients_of(model, batch, 83, false), cut = gradients_of(model, batch, 1, true);
  EXPECT_NEAR(cut.sum, whole.sum, 1e-9);
  for (size_t i = 0; i < whole.gradients.size(); ++i) EXPECT_CLOSE(cut.gradients[i], whole.gradients[i], 1e-10) << i;
}

TEST(Gradient, DetachedSegmentsHaveTheLossOfTheWholeAndAnotherGradient) {
  const auto model = small_model("ttt_linear*2");
  const Batch batch = batch_of(2, 23);
  const Found whole = gradients_of(model, batch, 23, false), cut = gradients_of(model, batch, 5, false);
  EXPECT_NEAR(cut.sum, whole.sum, 1e-10);
  bool differs = false;
  for (size_t i = 0; i < whole.gradients.size(); ++i) {
    differs = differs || !difference(cut.gradients[i], whole.gradients[i], 1e-3).empty();
  }
  EXPECT_TRUE(differs);
}

/// Of the layers' losses, each a mean over a segment's tokens, weighted as the tokens are; the loss stays what it was.
TEST(Gradient, WhatMixersMinimiseIsAddedToTheGradientAndNotToTheLoss) {
  const auto plan = [](double weight) {
    return text("vq_attention(num_codes=5, window=4, chunk_size=3, commitment=", weight, "), identity, ",
                "vq_attention(num_codes=4, window=2, chunk_size=4, commitment=", 2 * weight, ")");
  };
  const auto with = small_model(plan(3)), without = small_model(plan(0));
  {
    at::NoGradGuard no_grad;
    const auto parameters = without->named_parameters(), buffers = without->named_buffers();
    for (const auto& item : with->named_parameters()) item.value().copy_(*parameters.find(item.key()));
    for (const auto& item : with->named_buffers()) item.value().copy_(*buffers.find(item.key()));
  }
  Batch batch = batch_of(2, 23);
  batch.mask.fill_(1);
  for (const int64_t length : {23, 9}) {
    std::vector<Tensor> expected;
    State state = with->initial_state(2);
    Tensor sum = at::zeros({}, at::kDouble);
    for (int64_t from = 0; from < 23; from += length) {
      const Batch part = batch.slice(from, std::min<int64_t>(from + length, 23));
      with->hidden(part.inputs, state, part.segments);
      for (const auto& [name, loss] : mixer_losses(*with)) {
        EXPECT_TRUE(name == "layers.0.commitment" || name == "layers.2.commitment") << name;
        sum = sum + loss * (2.0 * static_cast<double>(part.length()) / 31);
      }
    }
    sum.backward();
    expected = take_gradients(player_of(with));
    double largest = 0;
    for (const bool recompute : {false, true}) {
      with->recompute = without->recompute = recompute;
      const Found all = gradients_of(with, batch, length, true), loss = gradients_of(without, batch, length, true);
      EXPECT_NEAR(all.sum, loss.sum, 1e-12);
      const Player player = player_of(with);
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_CLOSE(all.gradients[i], loss.gradients[i] + expected[i], 1e-11) << player.parameters[i].first;
        if (player.parameters[i].first.find("k_proj") == std::string::npos) continue;
        largest = std::max(largest, expected[i].abs().max().item<double>());
      }
    }
    with->recompute = without->recompute = false;
    EXPECT_GT(largest, 1e-3);
  }
}

/// The sums for the next codebook: of each token once, however often its segment or block runs.
TEST(Gradient, KeysAreCountedOnce) {
  const auto model = small_model("vq_attention(num_codes=5, window=4, chunk_size=3)*2");
  const Batch batch = batch_of(2, 23);
  const auto sums = [&] {
    std::vector<Tensor> found;
    at::NoGradGuard no_grad;
    for (const auto& item : model->named_buffers()) {
      const bool sum = item.key().find("step_sum") != std::string::npos;
      if (!sum && item.key().find("step_count") == std::string::npos) continue;
      found.push_back(item.value().clone());
      item.value().zero_();
    }
    return found;
  };
  gradients_of(model, batch, 23, false);
  const auto expected = sums();
  ASSERT_EQ(expected.size(), 4u);
  EXPECT_EQ(expected[1].sum().item<double>(), 3 * 2 * 23);  // [H, M] of 3 heads
  for (const bool recompute : {false, true}) {
    model->recompute = recompute;
    for (const bool differentiable : {false, true}) {
      gradients_of(model, batch, 5, differentiable);
      const auto found = sums();
      for (size_t i = 0; i < found.size(); ++i) EXPECT_CLOSE(found[i], expected[i], 1e-12);
    }
  }
  gradients_of(model, batch, 23, false);
  gradients_of(model, batch, 23, false);  // accumulated
  const auto twice = sums();
  for (size_t i = 0; i < twice.size(); ++i) EXPECT_CLOSE(twice[i], 2 * expected[i], 1e-12);
}

TEST(Gradient, RandomNumbersAreTheSameWhenASegmentRunsAgain) {
  const auto model = small_model("ttt_linear");
  Player player = player_of(model);
  const auto loss = player.loss;
  std::vector<double> drawn;
  player.loss = [&](const Batch& batch, State& state) {
    const Tensor factor = at::rand({}, at::kDouble) + 0.5;
    drawn.push_back(factor.item<double>());
    return loss(batch, state) * factor;
  };
  SegmentRun run;
  run.length = 5;
  run.differentiable = true;
  add_gradient(player, *model, batch_of(1, 13), 1, run);
  ASSERT_EQ(drawn.size(), 5u);  // segments 0, 1 to find where 2 starts, then 2, 1, 0
  EXPECT_EQ(drawn[4], drawn[0]);
  EXPECT_EQ(drawn[3], drawn[1]);
  EXPECT_NE(drawn[2], drawn[1]);
  const double next = at::rand({}, at::kDouble).item<double>();
  for (const double before : drawn) EXPECT_NE(next + 0.5, before);
}

TEST(Gradient, EvaluationInSegmentsCarriesTheState) {
  const auto model = small_model("ttt_linear*2");
  const Player player = player_of(model);
  const Batch batch = batch_of(2, 23);
  std::vector<double> sums;
  for (const int64_t length : {23, 7}) {
    SegmentRun run;
    run.length = length;
    State state = model->initial_state(2);
    sums.push_back(sum_loss(player, batch, state, run));
  }
  EXPECT_NEAR(sums[0], sums[1], 1e-10);
}

TrainConfig small_config(const Json& more = Json::object()) {
  TrainConfig config;
  Json fields = {{"steps", 5}, {"batch_size", 2}, {"context", 23}, {"warmup", 0}};
  fields.update(more);
  config.read(fields, "test");
  return config;
}

TEST(Trainer, AccumulatedBatchesAndSegmentsAreWeightedByWhatCounts) {
  // One batch of two rows, or each row in a batch of its own, with different numbers of targets that count.
  const Batch batch = batch_of(2, 23, false);
  std::vector<std::vector<Tensor>> results;
  for (const bool apart : {false, true}) {
    at::manual_seed(3);
    const auto model = small_model("ttt_linear");
    TrainData data;
    data.batch = [&](int64_t number) {
      if (!apart) return batch;
      const int64_t row = number % 2;
      return Batch{batch.inputs.slice(0, row, row + 1),
                   batch.targets.slice(0, row, row + 1),
                   batch.mask.slice(0, row, row + 1),
                   {}};
    };
    Trainer trainer(model, small_config({{"accumulate", apart ? 2 : 1}, {"batch_size", apart ? 1 : 2}, {"eps", 0.1}}),
                    data);
    for (int i = 0; i < 2; ++i) trainer.step();
    results.emplace_back();
    for (const auto& parameter : model->parameters()) results.back().push_back(parameter.detach());
  }
  for (size_t i = 0; i < results[0].size(); ++i) EXPECT_CLOSE(results[1][i], results[0][i], 1e-10) << i;
}

TEST(Trainer, TheLossFallsInEveryPrecision) {
  for (const char* precision : {"float32", "bfloat16"}) {
    for (const bool recompute : {false, true}) {
      const auto model = small_model("ttt_linear*2", at::kFloat);
      TrainData data;
      data.batch = [batch = batch_of(2, 23)](int64_t) { return batch; };
      Trainer trainer(
          model,
          small_config(
              {{"steps", 12}, {"lr", 0.02}, {"precision", precision}, {"recompute", recompute}, {"segment", 9}}),
          data);
      const double first = trainer.step().loss;
      double last = first;
      for (int i = 1; i < 12; ++i) last = trainer.step().loss;
      EXPECT_LT(last, first - 0.3) << precision << " " << recompute;
      for (const auto& parameter : model->parameters()) EXPECT_EQ(parameter.scalar_type(), at::kFloat);
    }
  }
}

TEST(Trainer, MeasuredScalarsAreNamedByLayerAndOnlyWhenAsked) {
  const auto model = small_model("ttt_linear, identity, ttt_linear");
  TrainData data;
  data.batch = [](int64_t) { return batch_of(2, 23); };
  Trainer trainer(model, small_config({{"segment", 5}}), data);
  EXPECT_TRUE(trainer.step(false).measured.empty());
  const auto measured = trainer.step(true).measured;
  std::vector<std::string> names;
  for (const auto& [name, value] : measured) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"layers.0.inner_loss_before", "layers.0.inner_loss_after",
                                             "layers.2.inner_loss_before", "layers.2.inner_loss_after"}));
  EXPECT_TRUE(trainer.step(false).measured.empty());
}

TEST(Trainer, SaysWhereALossStopsBeingFinite) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto step_with = [&](const std::function<void(LanguageModel&)>& poison, const Json& options) {
    const auto model = small_model("identity, ttt_linear, identity");
    TrainData data;
    data.batch = [](int64_t) { return batch_of(2, 23); };
    Trainer trainer(model, small_config(options), data);
    trainer.step();
    at::NoGradGuard no_grad;
    poison(*model);
    at::AutoGradMode enable(true);
    trainer.step();
  };
  const auto weight = [&](LanguageModel& model) {
    model.named_parameters()["model.layers.1.seq_modeling_block.o_proj.weight"][3][5].fill_(nan);
  };
  EXPECT_TRUE(throws_error([&] { step_with(weight, Json::object()); },
                           {"step 2", "layer 1 (ttt_linear)", "row 0, token 0 (id "}));
  const Batch batch = batch_of(2, 23);
  const auto id = batch.inputs[1][20].item<int64_t>();
  Tensor first = (batch.inputs.t().contiguous() == id).nonzero()[0];  // the earliest place of that id
  const auto embedding = [&](LanguageModel& model) {
    model.named_parameters()["model.embed_tokens.weight"][id].fill_(nan);
  };
  for (const char* carry : {"detached", "differentiable"}) {
    const std::string where =
        text("row ", first[1].item<int64_t>(), ", token ", first[0].item<int64_t>(), " (id ", id, ")");
    EXPECT_TRUE(throws_error(
        [&] {
          step_with(embedding, {{"segment", 4}, {"carry", carry}});
        },
        {"step 2", "embedding", where}));
  }
}

TEST(Trainer, SaysWhichGradientIsNotFinite) {
  const auto model = small_model("ttt_linear");
  TrainData data;
  data.batch = [](int64_t) { return batch_of(2, 23); };
  const Tensor weight = model->named_parameters()["model.layers.0.mlp.up_proj.weight"];
  weight.register_hook([](const Tensor& gradient) { return gradient * std::numeric_limits<double>::infinity(); });
  const Tensor before = weight.detach().clone();
  Trainer trainer(model, small_config(), data);
  EXPECT_TRUE(throws_error([&] { trainer.step(); },
                           {"step 1", "model.layers.0.mlp.up_proj.weight", "is finite", "a lower --lr or --clip"}));
  EXPECT_TRUE(at::equal(weight, before));
}

TEST(Trainer, StepsByTheClippedGradientAtTheSchedulesRate) {
  const auto model = small_model("ttt_linear");
  const Batch batch = batch_of(2, 23);
  Player player = player_of(model);
  SegmentRun run;
  run.length = 23;
  add_gradient(player, *model, batch, batch.mask.sum().item<double>(), run);
  const auto gradients = take_gradients(player);
  double square = 0;
  for (const Tensor& gradient : gradients) square += gradient.square().sum().item<double>();
  const double norm = std::sqrt(square), most = norm / 7;
  std::vector<Tensor> expected;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Tensor g = gradients[i] * (most / norm);  // AdamW's first step is g / (|g| + eps)
    expected.push_back(player.parameters[i].second.detach() - 0.01 * g / (g.abs() + 0.1));
  }
  TrainData data;
  data.batch = [&](int64_t) { return batch; };
  Trainer trainer(
      model,
      small_config(
          {{"lr", 0.02}, {"schedule", "constant"}, {"warmup", 0.4}, {"eps", 0.1}, {"weight_decay", 0}, {"clip", most}}),
      data);
  const StepResult result = trainer.step();
  EXPECT_EQ(result.lr, 0.01);
  EXPECT_NEAR(result.grad_norm, norm, 1e-12);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_CLOSE(player.parameters[i].second.detach(), expected[i], 1e-12) << player.parameters[i].first;
  }
  EXPECT_EQ(trainer.step().lr, 0.02);
  EXPECT_EQ(trainer.step().lr, 0.02);
}

TEST(Trainer, PrecisionAndRecomputeReachTheModel) {
  const auto losses = [](const char* precision, bool recompute) {
    at::manual_seed(3);
    const auto model = small_model("ttt_linear*2", at::kFloat);
    TrainData data;
    data.batch = data.validation = [](int64_t) { return batch_of(2, 23); };
    data.validation_batches = 1;
    Trainer trainer(model, small_config({{"precision", precision}, {"recompute", recompute}}), data);
    EXPECT_EQ(model->recompute, recompute);
    const double validation = trainer.validation_loss();
    return std::make_pair(trainer.step().loss, validation);
  };
  const auto exact = losses("float32", false), again = losses("float32", true), rounded = losses("bfloat16", false);
  EXPECT_EQ(exact, again);
  EXPECT_NE(exact.first, rounded.first);
  EXPECT_NE(exact.second, rounded.second);
  EXPECT_NEAR(exact.first, rounded.first, 0.02 * exact.first);
  EXPECT_NEAR(exact.second, rounded.second, 0.02 * exact.second);
}

TEST(Trainer, ValidationReadsTheFirstBatchesAsOneText) {
  const auto model = small_model("ttt_linear*2");
  const Batch all = batch_of(2, 60, false);
  TrainData data;
  data.batch = [&](int64_t) { return all; };
  data.validation = [&](int64_t number) { return all.slice(20 * number, 20 * number + 20); };
  data.validation_batches = 3;
  for (const int64_t batches : {0, 1, 2, 3, 9}) {
    Trainer trainer(model, small_config({{"eval_batches", batches}, {"segment", 7}}), data);
    const Batch read = all.slice(0, batches == 0 ? 60 : std::min<int64_t>(20 * batches, 60));
    State state = model->initial_state(2);
    SegmentRun run;
    run.length = 60;
    const double expected = sum_loss(player_of(model), read, state, run) / read.mask.sum().item<double>();
    EXPECT_NEAR(trainer.validation_loss(), expected, 1e-10) << batches;
  }
}

TEST(Trainer, SaysWhereAValidationLossStopsBeingFinite) {
  const auto model = small_model("identity, ttt_linear, identity");
  TrainData data;
  data.batch = data.validation = [](int64_t) { return batch_of(2, 23); };
  data.validation_batches = 2;
  Trainer trainer(model, small_config({{"segment", 5}}), data);
  trainer.step();
  const at::NoGradGuard no_grad;
  model->named_parameters()["model.layers.1.seq_modeling_block.o_proj.weight"][3][5].fill_(
      std::numeric_limits<double>::infinity());
  EXPECT_TRUE(throws_error([&] { trainer.validation_loss(); },
                           {"step 1: the validation loss of batch 0 is not finite", "layer 1 (ttt_linear)", "row 0"}));
}

}  // namespace
}  // namespace lineal
