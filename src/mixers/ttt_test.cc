#include "mixers/ttt.h"

#include <ATen/ATen.h>

#include "core/registry.h"
#include "mixers/linear_recurrence.h"
#include "testing/testing.h"

namespace lineal {
namespace {

std::shared_ptr<TTT> make_ttt(const std::string& name, const Json& options, int64_t D) {
  return std::dynamic_pointer_cast<TTT>(make_mixer(name, options, D));
}

/// Random q, k, v, eta for one inner batch of C tokens, with everything an inner model is handed.
struct Inner {
  InnerBatch batch;
  InnerNorm norm;
  Weights W, D;
};

Inner random_inner(const InnerModel& f, int64_t B, int64_t H, int64_t C, int64_t K, bool norm, bool mid_batch) {
  Inner inner;
  auto& b = inner.batch;
  b.q = normal({B, H, C, K}, 1, at::kDouble), b.k = normal({B, H, C, K}, 2, at::kDouble);
  b.target = normal({B, H, C, K}, 3, at::kDouble);
  b.eta = normal({B, H, C, 1}, 4, at::kDouble).sigmoid() / 4;
  b.scale = normal({B, 1, C, 1}, 5, at::kDouble).sigmoid();
  b.qk = at::matmul(b.q, b.k.transpose(-1, -2)).tril();
  b.qk1 = (b.qk + 1).tril();
  inner.norm.on = norm;
  inner.norm.gamma = 1 + 0.1 * normal({H, 1, K}, 6, at::kDouble);
  inner.norm.beta = 0.1 * normal({H, 1, K}, 7, at::kDouble);
  uint64_t seed = 8;
  for (const auto& weight : f.weights(K)) {
    auto shape = weight.shape;
    shape.insert(shape.begin(), {B, H});
    inner.W.push_back(0.3 * normal(shape, seed++, at::kDouble));
    inner.D.push_back(mid_batch ? 0.1 * normal(shape, seed++, at::kDouble) : Tensor());
  }
  return inner;
}

const std::vector<std::string> kCases = {"linear_transformer_L48", "linear_mamba_L48",     "linear_transformer_L16",
                                         "linear_mamba_L16",       "linear_gate_only_L40", "linear_share_nogate_L7",
                                         "mlp_transformer_L48",    "mlp_mamba_L48",        "mlp_transformer_L16",
                                         "mlp_mamba_L16",          "mlp_gate_only_L40",    "mlp_share_nogate_L7"};

class TTTGolden : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

// The public implementation in float64 against ours, in float64: outputs, the weights the last token used, gradients.
TEST_P(TTTGolden, OutputsStateAndGradients) {
  const auto& [id, form] = GetParam();
  const Golden golden("ttt/" + id);
  const bool mlp = id.starts_with("mlp");
  // The published cases' base_lr, which is not stored beside the tensors.
  const bool small_lr = mlp && id != "mlp_mamba_L48" && id != "mlp_gate_only_L40";
  const int64_t D = golden["x"].size(2);
  auto layer = make_ttt(mlp ? "ttt_mlp" : "ttt_linear",
                        {{"num_attention_heads", 2},
                         {"mini_batch_size", 16},
                         {"ttt_base_lr", small_lr ? 0.1 : 1.0},
                         {"share_qk", golden.has("param.conv_q.weight")},
                         {"use_gate", golden.has("param.g_proj.weight")},
                         {"form", form}},
                        D);
  layer->to(at::kDouble);
  auto parameters = layer->named_parameters();
  ASSERT_EQ(parameters.size(), golden.names("param.").size());
  {
    at::NoGradGuard no_grad;
    for (const auto& name : golden.names("param.")) parameters[name].copy_(golden["param." + name]);
  }
  const Tensor x = golden["x"].to(at::kDouble).requires_grad_();
  State state = layer->initial_state(x.size(0));
  const Tensor y = layer->forward(x, state, {});
  EXPECT_CLOSE(y, golden["y"], 1e-5);
  const Weights last = layer->current_weights(state);
  const std::vector<std::string> names =
      mlp ? std::vector<std::string>{"W1", "b1", "W2", "b2"} : std::vector<std::string>{"W1", "b1"};
  for (size_t i = 0; i < names.size(); ++i) EXPECT_CLOSE(last[i], golden["state." + names[i]], 1e-5);
  (y * golden["probe"].to(at::kDouble)).sum().backward();
  EXPECT_CLOSE(x.grad(), golden["grad.x"], 1e-4);
  for (const auto& name : golden.names("param.")) {
    SCOPED_TRACE(name);
    EXPECT_CLOSE(parameters[name].grad(), golden["grad.param." + name], 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(All, TTTGolden, testing::Combine(testing::ValuesIn(kCases), testing::Values("dual", "primal")),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param); });

/// ttt_linear without norm, residual, biases and rotation; every parameter random.
std::shared_ptr<TTT> bare_layer(int64_t D, const Json& options) {
  Json all = {{"num_attention_heads", 3}, {"norm", false}, {"residual", false}, {"bias", false}, {"rope_theta", 0}};
  all.update(options);
  auto layer = make_ttt("ttt_linear", all, D);
  layer->to(at::kDouble);
  at::NoGradGuard no_grad;
  uint64_t seed = 20;
  for (Tensor& parameter : layer->parameters()) parameter.copy_(0.5 * normal(parameter.sizes(), seed++, at::kDouble));
  if (auto* scale = layer->named_parameters().find("learnable_token_idx")) scale->zero_();
  return layer;
}

/// [B, T, H, K] of x through the layer's map of that name.
Tensor projected(TTT& layer, const char* name, const Tensor& x, int64_t H) {
  return at::linear(x, layer.named_parameters()[std::string(name) + ".weight"]).unflatten(2, {H, -1});
}

/// What the layer does with its inner model's answers o [B, T, H, K].
Tensor after_the_inner_model(TTT& layer, const Tensor& o) {
  const auto weights = layer.named_parameters();
  const Tensor flat = o.flatten(2), centred = flat - flat.mean(-1, true);
  const Tensor normal = centred / (centred.square().mean(-1, true) + 1e-6).sqrt();
  return at::linear(normal * weights["post_norm.weight"] + weights["post_norm.bias"], weights["o_proj.weight"]);
}

// Equivalence 1: no norm, no residual, W_0 = 0, one inner batch, eta = 1 on 1/2 |.|^2: causal linear attention.
TEST(TTTEquivalence, BatchGradientDescentIsLinearAttention) {
  at::NoGradGuard no_grad;
  const int64_t B = 2, T = 21, H = 3, K = 5;
  const Tensor x = normal({B, T, H * K}, 1, at::kDouble);
  for (const char* form : {"auto", "primal"}) {
    for (const int64_t size : {T, T + 9}) {
      SCOPED_TRACE(text(form, ", inner batch ", size));
      const auto layer = bare_layer(H * K, {{"eta", "fixed"},
                                            {"ttt_base_lr", 1.0},
                                            {"initial_weights", "zero"},
                                            {"mini_batch_size", size},
                                            {"form", form}});
      const auto [o, S] = linear_recurrence_reference({.q = projected(*layer, "q_proj", x, H),
                                                       .k = projected(*layer, "k_proj", x, H),
                                                       .v = projected(*layer, "v_proj", x, H),
                                                       .S = at::zeros({B, H, K, K}, at::kDouble)});
      State state = layer->initial_state(B);
      EXPECT_CLOSE(layer->forward(x, state, {}), after_the_inner_model(*layer, o), 1e-11);
      EXPECT_CLOSE(layer->current_weights(state)[0], S, 1e-11);
    }
  }
}

// Equivalence 2: f(x; data) = sum_j G(x, k_j) v_j / sum_j G(x, k_j) with G(x, k) = exp(K^{-1/2} x . k), trained by
// remembering its data, is attention: its training set is the cache.
TEST(TTTEquivalence, NadarayaWatsonIsAttention) {
  at::NoGradGuard no_grad;
  const int64_t T = 19, H = 3, K = 5;
  const auto mixer = make_mixer("attention", {{"num_attention_heads", H}, {"rope_theta", 0}}, H * K);
  mixer->to(at::kDouble);
  uint64_t seed = 20;
  for (Tensor& parameter : mixer->parameters()) parameter.copy_(0.5 * normal(parameter.sizes(), seed++, at::kDouble));
  const auto weights = mixer->named_parameters();
  const Tensor x = normal({1, T, H * K}, 1, at::kDouble);
  const auto view = [&](const char* name, int64_t t) {  // [H, K] of token t
    return at::linear(x[0][t], weights[name]).view({H, K});
  };
  State state = mixer->initial_state(1);
  std::vector<Tensor> keys, values;  // the learner's data
  for (int64_t t = 0; t < T; ++t) {
    keys.push_back(view("k_proj.weight", t));
    values.push_back(view("v_proj.weight", t));
    Tensor sum = at::zeros({H, K}, at::kDouble), total = at::zeros({H, 1}, at::kDouble);
    for (size_t j = 0; j < keys.size(); ++j) {
      const Tensor G = ((view("q_proj.weight", t) * keys[j]).sum(1, true) / std::sqrt(static_cast<double>(K))).exp();
      sum = sum + G * values[j];
      total = total + G;
    }
    const Tensor expected = at::linear((sum / total).flatten(), weights["o_proj.weight"]);
    EXPECT_CLOSE(mixer->forward(x.slice(1, t, t + 1), state)[0][0], expected, 1e-12) << "token " << t;
  }
  EXPECT_CLOSE(state.at("k")[0], at::stack(keys), 1e-12);
  EXPECT_CLOSE(state.at("v")[0], at::stack(values), 1e-12);
}

// Equivalence 3: linear f without norm, an inner batch of one token: the delta rule with beta = eta.
TEST(TTTEquivalence, OnlineGradientDescentIsTheDeltaRule) {
  at::NoGradGuard no_grad;
  const int64_t B = 2, T = 11, H = 3, K = 5;
  const Tensor x = normal({B, T, H * K}, 1, at::kDouble);
  for (const char* form : {"auto", "primal"}) {
    for (const char* eta : {"fixed", "learned"}) {
      for (const char* start : {"zero", "learned"}) {
        SCOPED_TRACE(text(form, ", eta ", eta, ", initial_weights ", start));
        const auto layer = bare_layer(
            H * K,
            {{"eta", eta}, {"ttt_base_lr", 0.3}, {"initial_weights", start}, {"mini_batch_size", 1}, {"form", form}});
        const auto weights = layer->named_parameters();
        Tensor beta = at::full({B, T, H}, 0.3, at::kDouble);
        if (std::string(eta) == "learned") {
          const Tensor gate = at::linear(x, weights["learnable_ttt_lr_weight"].squeeze(1));  // [B, T, H]
          beta = 0.3 / K * (gate + weights["learnable_ttt_lr_bias"].squeeze(1)).sigmoid();
        }
        State state = layer->initial_state(B);
        const auto [o, S] = linear_recurrence_reference({.q = projected(*layer, "q_proj", x, H),
                                                         .k = projected(*layer, "k_proj", x, H),
                                                         .v = projected(*layer, "v_proj", x, H),
                                                         .beta = beta,
                                                         .S = state.at("W1")});
        EXPECT_CLOSE(layer->forward(x, state, {}), after_the_inner_model(*layer, o), 1e-11);
        EXPECT_CLOSE(layer->current_weights(state)[0], S, 1e-11);
      }
    }
  }
}

class PrimalDual : public testing::TestWithParam<std::tuple<std::string, bool, bool, bool, int>> {};

// Equivalence 4: primal == dual for every f, norm, length of the inner batch, and from the middle of one; gradients
// too.
TEST_P(PrimalDual, AgreeWithGradients) {
  const auto& [kind, bias, norm, mid_batch, C] = GetParam();
  const auto f = kind == "linear" ? linear_inner_model(bias) : mlp_inner_model(bias);
  Inner inner = random_inner(*f, 2, 3, C, 5, norm, mid_batch);
  const auto run = [&](bool dual) {
    Inner in = inner;
    std::vector<Tensor> leaves;
    const auto leaf = [&](Tensor& x) { leaves.push_back(x = x.detach().clone().requires_grad_()); };
    leaf(in.batch.q), leaf(in.batch.k), leaf(in.batch.target), leaf(in.batch.eta), leaf(in.batch.scale);
    for (auto& w : in.W) leaf(w);
    in.batch.qk = at::matmul(in.batch.q, in.batch.k.transpose(-1, -2)).tril();
    in.batch.qk1 = (in.batch.qk + 1).tril();
    std::vector<Tensor> out = {dual ? f->dual(in.batch, in.norm, in.W, in.D)
                                    : ttt_primal(*f, in.batch, in.norm, in.W, in.D)};
    out.insert(out.end(), in.D.begin(), in.D.end());
    Tensor sum = at::zeros({}, at::kDouble);
    for (size_t i = 0; i < out.size(); ++i) sum = sum + (out[i] * normal(out[i].sizes(), 90 + i, at::kDouble)).sum();
    sum.backward();
    for (auto& x : leaves) out.push_back(x.grad());
    return out;
  };
  const auto dual = run(true), primal = run(false);
  for (size_t i = 0; i < dual.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_CLOSE(dual[i], primal[i], 1e-10);
  }
}

INSTANTIATE_TEST_SUITE_P(All, PrimalDual,
                         testing::Combine(testing::Values("linear", "mlp"), testing::Bool(), testing::Bool(),
                                          testing::Bool(), testing::Values(1, 3, 16)));

// Equivalence 5: any split of the tokens into calls, of inner batches of any size, is one call.
TEST(TTTEquivalence, AnySplitIsOneCall) {
  for (const char* name : {"ttt_linear", "ttt_mlp"}) {
    for (const int64_t size : {1, 4, 16, 50, 1000}) {
      SCOPED_TRACE(text(name, " inner batch ", size));
      auto layer = make_ttt(name, {{"num_attention_heads", 2}, {"mini_batch_size", size}, {"share_qk", true}}, 12);
      layer->to(at::kDouble);
      at::NoGradGuard no_grad;
      const Tensor x = normal({3, 50, 12}, 11, at::kDouble);
      State whole = layer->initial_state(3);
      const Tensor y = layer->forward(x, whole, {});
      for (const int64_t step : {1, 7, 16, 33}) {
        State state = layer->initial_state(3);
        std::vector<Tensor> parts;
        for (int64_t t = 0; t < 50; t += step) parts.push_back(layer->forward(x.slice(1, t, t + step), state, {}));
        EXPECT_CLOSE(at::cat(parts, 1), y, 1e-10);
        for (const auto& [part, tensor] : whole.named()) EXPECT_CLOSE(state.at(part), tensor, 1e-10);
      }
    }
  }
}

TEST(TTT, FixedStepZeroStartNoBiasAndNoNormWork) {
  const Json options = {{"num_attention_heads", 3},
                        {"mini_batch_size", 7},
                        {"eta", "fixed"},
                        {"ttt_base_lr", 0.01},
                        {"initial_weights", "zero"},
                        {"bias", false},
                        {"norm", false},
                        {"residual", false},
                        {"rope_theta", 0}};
  for (const char* name : {"ttt_linear", "ttt_mlp"}) {
    std::vector<Tensor> outputs;
    for (const char* form : {"dual", "primal"}) {
      Json with_form = options;
      with_form["form"] = form;
      at::manual_seed(3);
      auto layer = make_ttt(name, with_form, 15);
      layer->to(at::kDouble);
      State state = layer->initial_state(2);
      outputs.push_back(layer->forward(normal({2, 17, 15}, 5, at::kDouble), state, {}));
      EXPECT_EQ(state.has("b1"), false);
    }
    EXPECT_CLOSE(outputs[0], outputs[1], 1e-10);
    EXPECT_TRUE(outputs[0].isfinite().all().item<bool>());
  }
}

TEST(TTT, InnerLossFallsByItsStepsAndIsReported) {
  auto layer = make_ttt("ttt_linear", {{"num_attention_heads", 2}}, 32);
  layer->measure = true;
  State state = layer->initial_state(2);
  layer->forward(normal({2, 64, 32}, 1), state, {});
  ASSERT_EQ(layer->measured.size(), 2u);
  EXPECT_EQ(layer->measured[0].first, "inner_loss_before");
  EXPECT_LT(layer->measured[1].second.item<double>(), layer->measured[0].second.item<double>());
}

TEST(TTT, AnOptimizerStepLeavesALiveStateAsItWas) {
  const auto layer = make_ttt("ttt_linear", {{"num_attention_heads", 2}}, 12);
  for (const int64_t B : {1, 3}) {
    State state = layer->initial_state(B);
    Segments segments{at::zeros({B, 2}, at::kBool)};
    segments.starts.select(1, 1).fill_(true);
    State restarted = state;
    layer->forward(normal({B, 2, 12}, 1), restarted, segments);
    const Tensor W = layer->named_parameters()["W1"];
    for (const State& live : {state, restarted}) {
      const Tensor part = live.at("W1"), before = part.detach().clone();
      {
        at::NoGradGuard no_grad;
        W.add_(1);
      }
      EXPECT_EQ(bit_difference(part.detach(), before), "");
    }
    W.mutable_grad() = Tensor();
    state.at("W1").sum().backward();
    EXPECT_CLOSE(W.grad(), at::full_like(W, static_cast<double>(B)), 0) << "the start is learned";
  }
}

/// Maps of the identity make k, v and the target the input, so that the inner loss is 1/2 |x W - x|^2.
TEST(TTT, InnerLossIsThatOfEachTokensWeights) {
  at::NoGradGuard no_grad;
  const int64_t B = 2, T = 10, H = 2, K = 3;
  const Json options = {
      {"num_attention_heads", H}, {"norm", false}, {"residual", false}, {"bias", false}, {"rope_theta", 0}};
  const auto make = [&](int64_t size) {
    Json changed = options;
    changed["mini_batch_size"] = size;
    at::manual_seed(3);
    const auto layer = make_ttt("ttt_linear", changed, H * K);
    layer->to(at::kDouble);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      layer->named_parameters()[std::string(name) + ".weight"].copy_(at::eye(H * K));
    }
    layer->measure = true;
    return layer;
  };
  const Tensor x = normal({B, T, H * K}, 1, at::kDouble);
  const auto loss = [&](const Tensor& W, int64_t from, int64_t to) {  // W [B, H, K, K]; mean of the tokens
    const Tensor k = x.slice(1, from, to).unflatten(2, {H, K}).transpose(1, 2);
    return 0.5 * (at::matmul(k, W) - k).square().sum(-1).mean();
  };
  const auto long_batch = make(16);  // none of its steps is taken within the call
  State state = long_batch->initial_state(B);
  const Tensor W = state.at("W1");
  long_batch->forward(x, state, {});
  EXPECT_CLOSE(long_batch->measured[0].second, loss(W, 0, T), 1e-12);
  EXPECT_CLOSE(long_batch->measured[1].second, loss(long_batch->current_weights(state)[0], 0, T), 1e-12);

  const auto layer = make(4);  // inner batches of 4, 4 and 2 tokens
  State whole = layer->initial_state(B), parts = whole;
  layer->forward(x, whole, {});
  const auto measured = layer->measured;
  Tensor before = at::zeros({}, at::kDouble), after = before;
  for (int64_t from = 0; from < T; from += 4) {
    const int64_t to = std::min(from + 4, T);
    before = before + loss(layer->current_weights(parts)[0], from, to) * (to - from) / T;
    layer->forward(x.slice(1, from, to), parts, {});
    after = after + loss(layer->current_weights(parts)[0], from, to) * (to - from) / T;
  }
  EXPECT_CLOSE(measured[0].second, before, 1e-12);
  EXPECT_CLOSE(measured[1].second, after, 1e-12);
}

/// Rows whose inner batches begin at different tokens: each token counts once, whatever row and block it lies in.
TEST(TTT, InnerLossOfABatchIsTheMeanOfItsRows) {
  at::NoGradGuard no_grad;
  const int64_t T = 11;
  const auto layer = make_ttt("ttt_mlp", {{"num_attention_heads", 2}, {"mini_batch_size", 4}}, 12);
  layer->to(at::kDouble);
  layer->measure = true;
  const Tensor x = normal({2, T, 12}, 1, at::kDouble);
  Segments segments{at::zeros({2, T}, at::kBool)};
  segments.starts[0][6] = true;
  const auto run = [&](const Tensor& tokens, const Segments& documents) {
    State state = layer->initial_state(tokens.size(0));
    layer->forward(tokens, state, documents);
    return at::stack({layer->measured[0].second, layer->measured[1].second});
  };
  const auto row = [&](int64_t from, int64_t to, int64_t which) {  // a sum over tokens
    return run(x.slice(0, which, which + 1).slice(1, from, to), {}) * (to - from);
  };
  EXPECT_CLOSE(run(x, segments), (row(0, 6, 0) + row(6, T, 0) + row(0, T, 1)) / (2 * T), 1e-12);
}

TEST(TTT, ImpossibleSizesAreNamed) {
  EXPECT_ERROR(make_ttt("ttt_linear", {{"num_attention_heads", 3}}, 32), "expected a divisor of hidden_size 32");
  EXPECT_ERROR(make_ttt("ttt_linear", {{"num_attention_heads", 0}}, 32), "num_attention_heads is 0");
  EXPECT_ERROR(make_ttt("ttt_mlp", {{"mini_batch_size", -4}}, 32), "mini_batch_size is -4");
  EXPECT_ERROR(make_ttt("ttt_mlp", {{"mini_batch_sise", 4}}, 32), "did you mean 'mini_batch_size'");
  EXPECT_ERROR(make_ttt("ttt_linear", {{"num_attention_heads", 32}}, 32), "needs an even one");
}

}  // namespace
}  // namespace lineal
