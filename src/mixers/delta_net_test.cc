#include "mixers/delta_net.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear_attention.h"
#include "mixers/mixer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

TEST(DeltaNet, Golden) {
  const Golden golden("linear_family/delta_rule");
  const double scale = 1 / std::sqrt(16.0);
  for (const int64_t C : {0, 7, 32}) {  // 0: the recurrence
    const Tensor q = golden["q"].clone().requires_grad_(), k = golden["k"].clone().requires_grad_(),
                 v = golden["v"].clone().requires_grad_(), beta = golden["beta"].clone().requires_grad_();
    const auto rule = [&](const Tensor& S) {
      return C == 0 ? delta_rule_reference(q * scale, k, v, beta, S) : delta_rule_chunked(q * scale, k, v, beta, S, C);
    };
    const auto [o, S] = rule(at::zeros_like(golden["init_state"]));
    EXPECT_CLOSE(o, golden["o"], 1e-5);
    EXPECT_CLOSE(S, golden["final_state"], 1e-5);
    const auto gradients = torch::autograd::grad({(o * golden["probe"]).sum()}, {q, k, v, beta});
    EXPECT_CLOSE(gradients[0], golden["grad.q"], 1e-4);
    EXPECT_CLOSE(gradients[1], golden["grad.k"], 1e-4);
    EXPECT_CLOSE(gradients[2], golden["grad.v"], 1e-4);
    EXPECT_CLOSE(gradients[3], golden["grad.beta"], 1e-4);
    const auto [o_init, S_init] = rule(golden["init_state"]);
    EXPECT_CLOSE(o_init, golden["o_init"], 1e-5);
    EXPECT_CLOSE(S_init, golden["final_state_init"], 1e-5);
  }
}

TEST(DeltaNet, ChunkedIsTheRecurrence) {
  const int64_t B = 3, T = 29, H = 2, K = 5, V = 7;
  const auto d = at::kDouble;
  const Tensor k = normal({B, T, H, K}, 2, d);
  const std::vector<Tensor> inputs = {normal({B, T, H, K}, 1, d), k / k.norm(2, {-1}, true), normal({B, T, H, V}, 3, d),
                                      normal({B, T, H}, 5, d).sigmoid(), normal({B, H, K, V}, 4, d)};
  Segments segments{at::zeros({B, T}, at::kBool)};
  segments.starts[0][0] = true;
  segments.starts[1][9] = true;
  segments.starts[1][11] = true;
  segments.starts[2][28] = true;
  for (const auto& documents : {Segments{}, segments}) {
    const auto run = [&](int64_t C) {
      std::vector<Tensor> in;
      for (const Tensor& input : inputs) in.push_back(input.clone().requires_grad_());
      const auto [o, S] = C == 0 ? delta_rule_reference(in[0], in[1], in[2], in[3], in[4], documents)
                                 : delta_rule_chunked(in[0], in[1], in[2], in[3], in[4], C, documents);
      auto result = torch::autograd::grad({o.square().sum() + S.pow(3).sum()}, in);
      result.push_back(o);
      result.push_back(S);
      return result;
    };
    const auto expected = run(0);
    for (const int64_t C : {1, 4, 29, 64}) {
      const auto actual = run(C);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_CLOSE(actual[i], expected[i], 1e-11);
    }
  }
}

/// With orthogonal keys nothing needs correcting: beta 1 makes the delta rule linear attention.
TEST(DeltaNet, OrthogonalKeysMakeItLinearAttention) {
  const Tensor k = at::eye(11, at::kDouble).view({1, 11, 1, 11}), q = normal({1, 11, 1, 11}, 1, at::kDouble);
  const Tensor v = normal({1, 11, 1, 7}, 2, at::kDouble), S = at::zeros({1, 1, 11, 7}, at::kDouble);
  const Tensor o = delta_rule_chunked(q, k, v, at::ones({1, 11, 1}, at::kDouble), S, 4).first;
  EXPECT_CLOSE(o, linear_attention_reference(q, k, v, S).first, 1e-12);
}

/// beta 1 and a key of length 1 overwrite: asking for the key gives its last value.
TEST(DeltaNet, TheLastValueOfAKeyIsWhatItAnswers) {
  const Tensor keys = at::eye(3, at::kDouble).index_select(0, at::tensor({0, 1, 0, 2, 0, 1, 2}, at::kLong));
  const Tensor k = keys.view({1, 7, 1, 3}), v = normal({1, 7, 1, 5}, 3, at::kDouble);
  const Tensor beta = at::ones({1, 7, 1}, at::kDouble), S = normal({1, 1, 3, 5}, 4, at::kDouble);
  const auto [o, last] = delta_rule_chunked(k, k, v, beta, S, 4);
  EXPECT_CLOSE(o, v, 1e-12);
  EXPECT_CLOSE(last.view({3, 5}), v.view({7, 5}).index_select(0, at::tensor({4, 5, 6}, at::kLong)), 1e-12);
}

/// The layer as delta_net.cc's head has it, one token after another.
Tensor naive_layer(const torch::OrderedDict<std::string, Tensor>& weights, const Tensor& x, int64_t H,
                   bool short_conv) {
  const int64_t B = x.size(0), T = x.size(1), K = x.size(2) / H;
  const auto view = [&](const std::string& name) {
    Tensor y = at::linear(x, weights[name + "_proj.weight"]);
    if (short_conv) {
      const Tensor w = weights[name + "_conv1d.weight"];
      Tensor sum = at::zeros_like(y) + weights[name + "_conv1d.bias"];
      for (int64_t j = 0; j < w.size(2); ++j) {
        const int64_t back = w.size(2) - 1 - j;
        const Tensor shifted = at::cat({at::zeros({B, back, H * K}, y.options()), y.slice(1, 0, T - back)}, 1);
        sum = sum + shifted * w.select(2, j).squeeze(1);
      }
      y = sum;
    }
    return (y * y.sigmoid()).unflatten(2, {H, K});
  };
  const auto unit = [](const Tensor& y) { return y / (y.square().sum(-1, true) + 1e-6).sqrt(); };
  const Tensor q = unit(view("q")), k = unit(view("k")), v = view("v");
  const Tensor beta = 1 / (1 + at::linear(x, weights["b_proj.weight"]).neg().exp());  // [B, T, H]
  Tensor S = at::zeros({B, H, K, K}, x.options()), o = at::zeros({B, T, H, K}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    const Tensor k_t = k.select(1, t), error = v.select(1, t) - at::einsum("bhkv,bhk->bhv", {S, k_t});
    S = S + beta.select(1, t).unsqueeze(2).unsqueeze(3) * at::einsum("bhk,bhv->bhkv", {k_t, error});
    o.select(1, t).copy_(at::einsum("bhkv,bhk->bhv", {S, q.select(1, t)}) / std::sqrt(static_cast<double>(K)));
  }
  const Tensor normal = o / (o.square().mean(-1, true) + 1e-5).sqrt() * weights["o_norm.weight"];
  return at::linear(normal.flatten(2), weights["o_proj.weight"]);
}

TEST(DeltaNet, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  for (const bool short_conv : {true, false}) {
    const int64_t H = 3, D = 15;
    const auto mixer =
        make_mixer("delta_net",
                   {{"num_attention_heads", H}, {"short_conv", short_conv}, {"conv_kernel", 3}, {"chunk_size", 4}}, D);
    mixer->to(at::kDouble);
    uint64_t seed = 2;
    for (Tensor& parameter : mixer->parameters()) parameter.copy_(0.5 * normal(parameter.sizes(), seed++, at::kDouble));
    const Tensor x = normal({2, 13, D}, 1, at::kDouble);
    State state = mixer->initial_state(2);
    EXPECT_CLOSE(mixer->forward(x, state), naive_layer(mixer->named_parameters(), x, H, short_conv), 1e-11);
  }
}

TEST(DeltaNet, RoundedInputsAreComputedInTheTypeOfTheState) {
  const Tensor q = normal({1, 9, 2, 5}, 1, at::kBFloat16), k = (0.4 * normal({1, 9, 2, 5}, 2)).to(at::kBFloat16),
               v = normal({1, 9, 2, 3}, 3, at::kBFloat16), beta = normal({1, 9, 2}, 4).sigmoid();
  const Tensor S = normal({1, 2, 5, 3}, 5);
  const auto [o, last] = delta_rule_chunked(q, k, v, beta, S, 4);
  const auto wide = [](const Tensor& x) { return x.to(at::kDouble); };
  const auto [expected, last_expected] = delta_rule_chunked(wide(q), wide(k), wide(v), wide(beta), wide(S), 4);
  EXPECT_EQ(o.scalar_type(), at::kBFloat16);
  EXPECT_CLOSE_RMS(o, expected, 5e-3);
  EXPECT_CLOSE_RMS(last, last_expected, 1e-5);
}

TEST(DeltaNet, ErrorsNameTheTensor) {
  EXPECT_ERROR(delta_rule_chunked(at::ones({1, 3, 2, 5}), at::ones({1, 3, 2, 5}), at::ones({1, 3, 2, 7}),
                                  at::ones({1, 3, 1}), at::ones({1, 2, 5, 7}), 4),
               "delta_rule: beta is [1, 3, 1], expected [B=1, T=3, H=2]");
}

}  // namespace
}  // namespace lineal
