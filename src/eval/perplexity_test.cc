#include "eval/perplexity.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "core/file.h"
#include "core/registry.h"
#include "eval/frequency.h"
#include "testing/counting_store.h"
#include "testing/temporary_folder.h"
#include "testing/testing.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Ids = std::vector<int64_t>;

std::shared_ptr<LanguageModel> make_model() {
  LanguageModelConfig config;
  config.hidden_size = 18;
  config.intermediate_size = 23;
  config.initializer_range = 0.3;
  config.pre_conv = true;
  config.layers = parse_plan("ttt_linear(num_attention_heads=3,mini_batch_size=29)");
  at::manual_seed(11);
  return std::make_shared<LanguageModel>(config);
}

Ids ids(int64_t count, int64_t seed) {
  Ids result;
  for (int64_t i = 0; i < count; ++i) result.push_back((i * i * 31 + i * 17 + seed * 5) % 256);
  return result;
}

using Documents = std::vector<Ids>;
const Documents kDocuments = {ids(1501, 1), ids(1, 2), ids(2, 3), ids(997, 4), ids(613, 5)};

/// The definition: every document alone, in parts of `context` tokens (0: at once); nats of tokens 1, 2, ...
std::vector<Tensor> alone(LanguageModel& model, int64_t context = 0) {
  at::NoGradGuard no_grad;
  std::vector<Tensor> nats;
  for (const Ids& document : kDocuments) {
    const Tensor tokens = at::tensor(document, at::kLong);
    const int64_t T = tokens.numel();
    std::vector<Tensor> parts = {at::empty({0}, at::kDouble)};
    for (int64_t from = 0; from + 1 < T; from += context > 0 ? context : T) {
      const int64_t to = context > 0 ? std::min(from + context, T - 1) : T - 1;
      State state = model.initial_state(1);
      const Tensor p = model.forward(tokens.slice(0, from, to).unsqueeze(0), state)[0].to(at::kDouble).log_softmax(-1);
      parts.push_back(-p.gather(1, tokens.slice(0, from + 1, to + 1).unsqueeze(1)).squeeze(1));
    }
    nats.push_back(at::cat(parts));
  }
  return nats;
}

Evaluation measure(const std::shared_ptr<LanguageModel>& model, const EvalOptions& options, size_t piece = 409,
                   const Documents& documents = kDocuments) {
  Evaluator evaluator(model, options);
  for (const Ids& document : documents) {
    for (size_t from = 0; from < document.size(); from += piece) {
      const Ids part(document.begin() + static_cast<std::ptrdiff_t>(from),
                     document.begin() + static_cast<std::ptrdiff_t>(std::min(from + piece, document.size())));
      evaluator.read(part, from == 0, static_cast<int64_t>(part.size()) - (from == 0 ? 1 : 0));
    }
  }
  return evaluator.finish();
}

TEST(Perplexity, IsTheDefinition) {
  const auto model = make_model();
  const auto nats = alone(*model);
  const Tensor all_nats = at::cat(nats);
  const Evaluation result = measure(model, {.chunk = 500, .first_bucket = 256});
  EXPECT_EQ(result.documents, 5);
  EXPECT_EQ(result.tokens, 3114);
  EXPECT_EQ(result.loss.tokens, 3109);
  const double mean = all_nats.mean().item<double>();
  EXPECT_NEAR(result.loss.mean(), mean, 1e-5 * mean);
  EXPECT_NEAR(result.perplexity(), std::exp(mean), 1e-4 * std::exp(mean));
  EXPECT_NEAR(result.bits_per_byte(), mean / std::numbers::ln2, 1e-5 * mean);

  const Tensor blocks = all_nats.slice(0, 0, 3072).reshape({3, 1024}).mean(1);
  const double error = blocks.std().item<double>() / std::sqrt(3.);
  ASSERT_TRUE(result.standard_error.has_value());
  EXPECT_NEAR(*result.standard_error, error, 1e-3 * error);

  // Positions 0-255, 256-511, 512-1023, 1024-2047; nats[d][p - 1] belongs to position p.
  const std::vector<int64_t> edges = {0, 256, 512, 1024, 2048};
  ASSERT_EQ(result.buckets.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(result.buckets[i].begin, edges[i]);
    EXPECT_EQ(result.buckets[i].end, edges[i + 1]);
    std::vector<Tensor> parts;
    for (const Tensor& document : nats) {
      parts.push_back(document.slice(0, std::max<int64_t>(edges[i] - 1, 0), edges[i + 1] - 1));
    }
    const Tensor expected = at::cat(parts);
    EXPECT_EQ(result.buckets[i].loss.tokens, expected.numel());
    EXPECT_NEAR(result.buckets[i].loss.mean(), expected.mean().item<double>(), 1e-5 * mean);
  }
}

TEST(Perplexity, EveryChunkGivesTheSame) {
  const auto model = make_model();
  const Evaluation expected = measure(model, {.chunk = 4001}, 5000);
  for (const int64_t chunk : {7, 64, 1000}) {
    const Evaluation result = measure(model, {.chunk = chunk});
    EXPECT_NEAR(result.loss.mean(), expected.loss.mean(), 1e-5 * expected.loss.mean()) << chunk;
    EXPECT_NEAR(*result.standard_error, *expected.standard_error, 1e-3 * *expected.standard_error) << chunk;
    EXPECT_EQ(result.loss.tokens, expected.loss.tokens);
    EXPECT_EQ(result.predicted_bytes, expected.predicted_bytes);
    ASSERT_EQ(result.buckets.size(), expected.buckets.size());
    for (size_t i = 0; i < result.buckets.size(); ++i) {
      EXPECT_EQ(result.buckets[i].loss.tokens, expected.buckets[i].loss.tokens);
      EXPECT_NEAR(result.buckets[i].loss.mean(), expected.buckets[i].loss.mean(), 1e-5 * expected.loss.mean());
    }
  }
}

TEST(Perplexity, OneTokenAtATimeGivesTheSame) {
  const auto model = make_model();
  const Documents documents = {ids(101, 1), ids(1, 2), ids(2, 3), ids(57, 4)};
  const Evaluation expected = measure(model, {.chunk = 4001}, 409, documents);
  const Evaluation result = measure(model, {.chunk = 1}, 409, documents);
  EXPECT_EQ(result.loss.tokens, 157);
  EXPECT_EQ(expected.loss.tokens, 157);
  EXPECT_NEAR(result.loss.mean(), expected.loss.mean(), 1e-5 * expected.loss.mean());
}

TEST(Perplexity, MaxContextRestartsTheState) {
  const auto model = make_model();
  const auto expected = at::cat(alone(*model, 101)).sum().item<double>();
  const Evaluation result = measure(model, {.chunk = 333, .max_context = 101});
  EXPECT_EQ(result.loss.tokens, 3109);
  EXPECT_NEAR(result.loss.nats, expected, 1e-5 * expected);
  EXPECT_GT(std::abs(result.loss.nats - measure(model, {}).loss.nats),
            1e-4 * expected);  // ten times the tolerance above
}

/// Means over the targets that `position` puts into [begin, end), against what was measured.
void expect_buckets(const Evaluation& result, const std::vector<Tensor>& nats, const std::vector<int64_t>& edges,
                    const std::function<int64_t(int64_t target)>& position) {
  ASSERT_EQ(result.buckets.size(), edges.size() - 1);
  for (size_t i = 0; i + 1 < edges.size(); ++i) {
    LossSum expected;
    for (const Tensor& document : nats) {
      for (int64_t target = 1; target <= document.numel(); ++target) {
        const int64_t at = position(target);
        if (at < edges[i] || at >= edges[i + 1]) continue;
        expected.nats += document[target - 1].item<double>();
        ++expected.tokens;
      }
    }
    EXPECT_EQ(result.buckets[i].begin, edges[i]);
    EXPECT_EQ(result.buckets[i].end, edges[i + 1]);
    EXPECT_EQ(result.buckets[i].loss.tokens, expected.tokens) << i;
    EXPECT_NEAR(result.buckets[i].loss.mean(), expected.mean(), 1e-5 * expected.mean()) << i;
  }
}

TEST(Perplexity, BucketsAreOfPositionsInTheDocument) {
  const auto model = make_model();
  const auto nats = alone(*model);
  const Evaluation result = measure(model, {.chunk = 333, .first_bucket = 47});
  expect_buckets(result, nats, {0, 47, 94, 188, 376, 752, 1504}, [](int64_t target) { return target; });
}

TEST(Perplexity, BucketsAreOfPositionsSinceTheRestart) {
  const auto model = make_model();
  const auto nats = alone(*model, 101);
  const Evaluation result = measure(model, {.chunk = 333, .first_bucket = 10, .max_context = 101});
  // The token at 101 is the last that is predicted from all 101; the next is predicted from one.
  expect_buckets(result, nats, {0, 10, 20, 40, 80, 160}, [](int64_t target) { return (target - 1) % 101 + 1; });
}

TEST(Perplexity, ErrorsAreThoseOfTheMean) {
  const Evaluation result = {.loss = {.nats = 6, .tokens = 4}, .standard_error = 0.25, .predicted_bytes = 10};
  EXPECT_DOUBLE_EQ(result.loss.mean(), 1.5);
  EXPECT_DOUBLE_EQ(result.perplexity(), std::exp(1.5));
  EXPECT_DOUBLE_EQ(result.bits_per_byte(), 0.6 / std::log(2.));
  EXPECT_DOUBLE_EQ(result.perplexity_error().value(), 0.25 * std::exp(1.5));
  EXPECT_DOUBLE_EQ(result.bits_per_byte_error().value(), 0.1 / std::log(2.));
  EXPECT_FALSE(Evaluation().perplexity_error() || Evaluation().bits_per_byte_error());
}

TEST(Perplexity, TellsHowFarItIs) {
  const TemporaryFolder folder;
  write_atomic(folder / "a.txt", std::string(301, 'a'));
  write_atomic(folder / "b.txt", "another text");
  std::vector<std::pair<int64_t, int64_t>> told;
  TextReader reader(find_sources({folder.path().string()}));
  EvalOptions options = {.chunk = 100};
  options.progress = [&](int64_t tokens, int64_t bytes) { told.emplace_back(tokens, bytes); };
  evaluate(make_model(), *find<TokenizerSpec>("bytes").make(), reader, options);
  const std::vector<std::pair<int64_t, int64_t>> expected = {
      {100, 100}, {200, 200}, {300, 300}, {301, 301}, {313, 313}};
  EXPECT_EQ(told, expected);
}

TEST(Perplexity, ReadsFilesToTheLimit) {
  const TemporaryFolder folder;
  write_atomic(folder / "a.txt", std::string(301, 'a') + "xyz");
  write_atomic(folder / "b.txt", "another text");
  const auto model = make_model();
  const auto tokenizer = find<TokenizerSpec>("bytes").make();
  const auto measured = [&](int64_t limit) {
    TextReader reader(find_sources({folder.path().string()}));
    return evaluate(model, *tokenizer, reader, {.limit = limit});
  };
  const Evaluation whole = measured(0), part = measured(307);
  EXPECT_EQ(whole.tokens, 316);
  EXPECT_EQ(whole.documents, 2);
  EXPECT_EQ(whole.loss.tokens, 314);
  EXPECT_EQ(whole.predicted_bytes, 314);
  EXPECT_FALSE(whole.standard_error.has_value());
  EXPECT_EQ(part.tokens, 307);
  EXPECT_EQ(part.loss.tokens, 305);
  EXPECT_EQ(part.predicted_bytes, 305);
  EXPECT_TRUE(throws_error([&] { measured(1); }, {"nothing to predict"}));
}

TEST(Perplexity, Refuses) {
  const auto model = make_model();
  EXPECT_TRUE(throws_error([&] { Evaluator(model, {.chunk = 0}); }, {"chunk is 0"}));
  EXPECT_TRUE(throws_error([&] { Evaluator(model, {.first_bucket = 0}); }, {"bucket is 0"}));
  EXPECT_TRUE(throws_error([&] { Evaluator(model, {.max_context = -1}); }, {"max context is -1"}));
  EXPECT_TRUE(throws_error([&] { Evaluator(model, {}).finish(); }, {"nothing to predict"}));
}

/// Documents of more than 40 tokens are windows of 40, 40 and 17; with a context of 40 each from the initial state.
void check_masked(const std::string& mixer, int64_t chunk, int64_t context) {
  SCOPED_TRACE(text(mixer, ", chunk ", chunk, ", context ", context));
  LanguageModelConfig config;
  config.vocab_size = 29;
  config.hidden_size = 12;
  config.initializer_range = 0.4;
  config.layers = parse_plan(mixer, {{"num_attention_heads", 3}});
  at::manual_seed(3);
  const auto model = std::make_shared<LanguageModel>(config);
  const Masking masking("test", "amino_acids", *find<TokenizerSpec>("amino_acids").make(), {});
  EvalOptions options;
  options.chunk = chunk;
  options.first_bucket = 40;
  options.max_context = context;
  options.masking = &masking;
  options.seed = 5;
  Evaluator evaluator(model, options);
  double nats = 0;
  int64_t tokens = 0, correct = 0, window = 0;
  std::vector<int64_t> targets(29);
  const at::NoGradGuard no_grad;
  for (const int64_t length : {31, 97, 2}) {
    Ids document = ids(length, length);
    for (int64_t& id : document) id %= 25;
    evaluator.read(document, true, 0);
    State state = model->initial_state(1);
    for (int64_t from = 0; from < length; from += 40) {
      if (context > 0) state = model->initial_state(1);
      const Tensor part = at::tensor(document, at::kLong).slice(0, from, std::min(from + 40, length)).unsqueeze(0);
      const Batch batch = masking.hide({part, part, at::ones(part.sizes()), {}}, 5, window++);
      const Tensor log_p = model->forward(batch.inputs, state)[0].to(at::kDouble).log_softmax(-1);
      for (int64_t t = 0; t < part.size(1); ++t) {
        if (batch.mask[0][t].item<float>() == 0) continue;
        const auto target = part[0][t].item<int64_t>();
        nats -= log_p[t][target].item<double>();
        correct += log_p[t].argmax().item<int64_t>() == target;
        ++tokens;
        ++targets[static_cast<size_t>(target)];
      }
    }
  }
  const Evaluation result = evaluator.finish();
  EXPECT_EQ(result.loss.tokens, tokens);
  EXPECT_NEAR(result.loss.nats, nats, 1e-4 * nats);
  EXPECT_EQ(result.correct, correct);
  EXPECT_EQ(result.targets, targets);
  EXPECT_EQ(result.tokens, 130);
  EXPECT_EQ(result.documents, 3);
  EXPECT_EQ(tokens, 5 + 6 + 6 + 3 + 1);
  EXPECT_EQ(result.buckets.back().end, context > 0 ? 40 : 160);
}

TEST(Evaluator, MaskedTokensAlone) {
  check_masked("performer_bidirectional(num_features=16)", 40, 0);
  for (const int64_t chunk : {40, 2048}) {
    check_masked("performer_bidirectional(num_features=16)", chunk, 40);
    check_masked("linformer(sequence_length=40,num_mixtures=7)", chunk, 40);
  }
}

TEST(FrequencyBaseline, PredictsTheTrainingTextsFrequencies) {
  // Of ids 0 to 3 the last is no target: (7 + 1) / 13, (3 + 1) / 13, 1 / 13.
  const FrequencyBaseline found = frequency_baseline({7, 3, 0, 90}, {5, 2, 1, 0}, {3});
  EXPECT_NEAR(found.nats, -(5 * std::log(8 / 13.) + 2 * std::log(4 / 13.) + std::log(1 / 13.)) / 8, 1e-12);
  EXPECT_DOUBLE_EQ(found.accuracy, 5 / 8.);
  EXPECT_ERROR(frequency_baseline({7, 3}, {0, 0}, {}), "no token");
  const auto store = counting_store({3, 2, 2});
  EXPECT_EQ(count_tokens({store, {store->document(0), store->document(2)}}, 8),
            std::vector<int64_t>({1, 1, 1, 0, 0, 1, 1, 0}));
}

}  // namespace
}  // namespace lineal
