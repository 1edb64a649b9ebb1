#include "eval/attention_matrix.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/registry.h"
#include "eval/similarity.h"
#include "mixers/rms_norm.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t kVocabulary = 29, kD = 12, kH = 3, kT = 23;

std::shared_ptr<LanguageModel> make_model(const std::string& plan) {
  LanguageModelConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = kD;
  config.intermediate_size = 20;
  config.initializer_range = 0.4;
  config.tie_word_embeddings = false;
  config.layers = parse_plan(plan, {{"num_attention_heads", kH}});
  at::manual_seed(5);
  auto model = std::make_shared<LanguageModel>(config);
  model->to(at::kDouble);
  const at::NoGradGuard no_grad;
  for (Tensor& parameter : model->parameters()) parameter.add_(0.1 * at::randn_like(parameter));
  return model;
}

Tensor some_tokens(int64_t T = kT) { return at::arange(2 * T).mul(17).remainder(kVocabulary).view({2, T}); }

/// What a layer's mixer reads.
Tensor input_of(LanguageModel& model, int64_t layer) {
  State state = model.initial_state(2);
  Tensor x = model.embed(some_tokens(), state);
  for (int64_t i = 0; i < layer; ++i) {
    x = model.blocks()[i]->forward(x, state.child("layers").child(std::to_string(i)), {});
  }
  const Tensor weight = model.named_parameters()[text("model.layers.", layer, ".seq_norm.weight")];
  return x / (x.square().mean(-1, true) + 1e-6).sqrt() * weight;
}

/// [B, T, H, K] of a layer's projection.
Tensor view(LanguageModel& model, int64_t layer, const std::string& name, const Tensor& x) {
  const Tensor weight =
      model.named_parameters()[text("model.layers.", layer, ".seq_modeling_block.", name, "_proj.weight")];
  return at::matmul(x, weight.t()).unflatten(2, {-1, kD / kH});
}

TEST(AttentionMatrix, OfAttentionIsItsSoftmax) {
  const auto model = make_model("attention(rope_theta=0,num_key_value_heads=1)*2");
  const at::NoGradGuard no_grad;
  for (int64_t layer = 0; layer < 2; ++layer) {
    const Tensor x = input_of(*model, layer);
    const Tensor q = view(*model, layer, "q", x), k = view(*model, layer, "k", x).expand({2, kT, kH, kD / kH});
    Tensor scores = at::einsum("bthk,bshk->bhts", {q, k}) / std::sqrt(static_cast<double>(kD / kH));
    scores = scores.masked_fill(at::ones({kT, kT}, at::kBool).triu(1), -INFINITY);
    EXPECT_CLOSE(attention_matrix(*model, some_tokens(), layer), scores.softmax(3), 1e-10);
  }
}

TEST(AttentionMatrix, OfLinearAttention) {
  const auto model = make_model("linear_attention");
  const at::NoGradGuard no_grad;
  const Tensor x = input_of(*model, 0), q = view(*model, 0, "q", x), k = view(*model, 0, "k", x);
  const Tensor A = at::einsum("bthk,bshk->bhts", {q, k}).tril() / std::sqrt(static_cast<double>(kD / kH));
  EXPECT_CLOSE(attention_matrix(*model, some_tokens(), 0), A, 1e-10);
}

/// The probe's own definition: the matrix times the layer's values is what it mixes of them.
TEST(AttentionMatrix, TimesTheValuesIsTheOutput) {
  for (const MixerSpec* spec : all<MixerSpec>()) {
    const auto model = make_model(spec->name);
    Tensor A;
    try {
      A = attention_matrix(*model, some_tokens(), 0);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("layer 0 is " + spec->name + ","), std::string::npos) << error.what();
      continue;
    }
    SCOPED_TRACE(spec->name);
    const at::NoGradGuard no_grad;
    State none;
    const Tensor x = model->embed(some_tokens(), none);
    Block& block = *model->blocks()[0];
    const auto mixed = [&](const Tensor& values) {
      Mixer::Probe probe{values, {}};
      block.mixer().probe = &probe;
      State state = block.initial_state(2);
      block.forward(x, state, {});
      block.mixer().probe = nullptr;
      return probe.outputs;
    };
    const Tensor own = mixed({}), values = normal(own.sizes(), 9, at::kDouble);  // [B, T, H, V]
    EXPECT_EQ(A.sizes(), at::IntArrayRef({2, own.size(2), kT, kT}));
    EXPECT_CLOSE(at::einsum("bhts,bshv->bthv", {A, values}), mixed(values), 1e-9);
    EXPECT_GT((own - mixed(values)).abs().max().item<double>(), 1e-3) << "the values are not looked at";
    if (spec->causal) {
      EXPECT_EQ(A.triu(1).abs().max().item<double>(), 0);
    } else {
      EXPECT_GT(A.triu(1).abs().max().item<double>(), 0);
    }
  }
}

TEST(AttentionMatrix, RowsOfNormalizedMixersSumToOne) {
  for (const std::string plan :
       {"attention", "vq_attention", "performer", "performer_bidirectional",
        "performer(feature_map=relu,kernel_epsilon=0.01)", "linear_attention(feature_map=elu1,normalize=true)"}) {
    const auto model = make_model(plan);
    const Tensor sums = attention_matrix(*model, some_tokens(), 0).sum(3);
    EXPECT_CLOSE(sums, at::ones_like(sums), 1e-5);
  }
}

TEST(AttentionMatrix, PerformersApproachesAttentions) {
  const auto exact = make_model("attention(rope_theta=0)");
  for (const char* name : {"q", "k"}) {  // of lengths about 1: the error grows with the exponent of their squares
    const at::NoGradGuard no_grad;
    exact->named_parameters()[text("model.layers.0.seq_modeling_block.", name, "_proj.weight")].mul_(0.4);
  }
  const auto error = [&](int64_t M) {
    const auto model = make_model(text("performer(rope_theta=0,num_features=", M, ")"));
    const at::NoGradGuard no_grad;
    for (const auto& item : exact->named_parameters()) model->named_parameters()[item.key()].copy_(item.value());
    const Tensor A = attention_matrix(*exact, some_tokens(), 0);
    return ((attention_matrix(*model, some_tokens(), 0) - A).norm() / A.norm()).item<double>();
  };
  const double few = error(16), many = error(4096);
  EXPECT_LT(many, 0.1) << few;
  EXPECT_LT(many, few / 4) << few;
}

TEST(AttentionMatrix, OfEveryLayerOneAtATime) {
  const auto model = make_model("attention, performer, linear_attention");
  std::vector<size_t> layers;
  at::TensorBase before;
  attention_matrices(*model, some_tokens(), [&](size_t layer, const Tensor& matrix) {
    EXPECT_CLOSE(matrix, attention_matrix(*model, some_tokens(), static_cast<int64_t>(layer)), 1e-12);
    if (before.defined()) {
      EXPECT_EQ(before.use_count(), 1u) << "an earlier layer's matrix is kept";
    }
    before = matrix;
    layers.push_back(layer);
  });
  EXPECT_EQ(layers, std::vector<size_t>({0, 1, 2}));
}

TEST(AttentionMatrix, Mistakes) {
  const auto model = make_model("attention, identity");
  EXPECT_TRUE(throws_error([&] { attention_matrix(*model, some_tokens(), 2); }, {"layer 2", "0 to 1"}));
  EXPECT_TRUE(throws_error([&] { attention_matrix(*model, some_tokens(), 1); }, {"layer 1 is identity"}));
  Mixer::Probe probe{at::zeros({1, 2, 3, 4}), {}};
  Block& block = *model->blocks()[0];
  block.mixer().probe = &probe;
  State state = block.initial_state(2), none;
  EXPECT_ERROR(block.forward(model->embed(some_tokens(), none), state, {}), "probe: values are [1, 2, 3, 4]");
}

TEST(Similarity, Blosum62IsAScoreOfLogOdds) {
  const Tensor S = blosum62();
  EXPECT_TRUE(at::equal(S, S.t()));
  // How often letters occur in proteins (Robinson and Robinson, 1991), in the order of kSimilarityLetters: with the
  // published lambda of this matrix and these the odds sum to 1.
  const Tensor p = at::tensor({.07805, .05129, .04487, .05364, .01925, .04264, .06295, .07377, .02199, .05142,
                               .09019, .05744, .02243, .03856, .05203, .07120, .05841, .01330, .03216, .06441},
                              at::kDouble);
  EXPECT_NEAR((at::outer(p, p) * (0.3176 * S).exp()).sum().item<double>(), 1, 1e-4);
}

TEST(Similarity, CorrelationOfPairs) {
  const Tensor a = at::tensor({9., 0., 0., 1., 9., 0., 2., 4., 9.}).view({3, 3});
  const Tensor b = at::tensor({5., 7., 7., 3., 5., 7., 5., 9., 5.}).view({3, 3});
  EXPECT_NEAR(correlation(a, b), 1, 1e-12);
  EXPECT_NEAR(correlation(a, -b), -1, 1e-12);
  EXPECT_LT(std::abs(correlation(a, at::tensor({0., 0., 0., 1., 0., 0., 3., 1., 0.}).view({3, 3}))), 0.3);
}

TEST(Similarity, MeanAttentionBetweenLetters) {
  const auto tokenizer = find<TokenizerSpec>("amino_acids").make();
  const auto model = make_model("performer_bidirectional, attention");
  AttentionSimilarity similarity(model, *tokenizer);
  const std::vector<std::string> sequences = {"ARNDCQEGHILKMFPSTWYVA", "AARW"};
  std::map<std::pair<char, char>, std::vector<double>> pairs;
  for (const auto& sequence : sequences) {
    const auto tokens = tokenizer->encode(sequence);
    similarity.add(tokens);
    const Tensor ids = at::tensor(tokens, at::kLong).unsqueeze(0);
    const auto T = static_cast<int64_t>(tokens.size());
    for (int64_t layer = 0; layer < 2; ++layer) {
      const Tensor matrix = attention_matrix(*model, ids, layer);
      for (int64_t i = 0; i < T; ++i) {
        for (int64_t j = 0; j < (layer == 0 ? T : i); ++j) {
          if (i == j) continue;
          const double seen = static_cast<double>(layer == 0 ? T : i + 1);
          for (int64_t h = 0; h < kH; ++h) {
            pairs[{sequence[i], sequence[j]}].push_back(seen * matrix[0][h][i][j].item<double>());
          }
        }
      }
    }
  }
  const auto mean = [&](char a, char b) {
    double sum = 0;
    for (const double value : pairs[{a, b}]) sum += value;
    return sum / static_cast<double>(pairs[{a, b}].size());
  };
  const Tensor S = similarity.matrix();
  for (const auto& [a, b] : {std::pair('A', 'R'), {'A', 'W'}, {'V', 'K'}, {'A', 'A'}}) {
    const auto place = [](char letter) { return static_cast<int64_t>(kSimilarityLetters.find(letter)); };
    EXPECT_NEAR(S[place(a)][place(b)].item<double>(), (mean(a, b) + mean(b, a)) / 2, 1e-6) << a << b;
    EXPECT_EQ(S[place(a)][place(b)].item<double>(), S[place(b)][place(a)].item<double>());
  }
  EXPECT_EQ(similarity.sequences(), 2);
}

}  // namespace
}  // namespace lineal
