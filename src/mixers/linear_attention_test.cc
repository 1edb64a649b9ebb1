#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear_recurrence.h"
#include "mixers/mixer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

/// The form under test: a chunk of 7 leaves a partial one in every golden.
kernels::RecurrenceOutput chunked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& S) {
  return linear_recurrence_chunked({.q = q, .k = k, .v = v, .S = S}, 7);
}

Tensor elu1(const Tensor& x) { return at::elu(x) + 1; }

/// S^T q / (z . q + eps) with z the column of S for values of one.
Tensor normalized(const Tensor& q, const Tensor& k, const Tensor& v, double eps) {
  const Tensor ones = at::ones({v.size(0), v.size(1), v.size(2), 1}, v.options());
  const Tensor S = at::zeros({v.size(0), v.size(2), k.size(3), v.size(3) + 1}, v.options());
  const Tensor o = chunked(q, k, at::cat({v, ones}, 3), S).o;
  return o.slice(3, 0, v.size(3)) / (o.slice(3, v.size(3)) + eps);
}

TEST(LinearAttention, GoldenOfTheNormalizedSum) {
  const Golden golden("linear_family/linear_attn");
  const Tensor o = normalized(golden["q_pos"] / std::sqrt(16.0), golden["k_pos"], golden["v"], 1e-10);
  EXPECT_CLOSE(o, golden["o_norm"], 1e-5);
}

TEST(LinearAttention, GoldenOfEluFeatures) {
  const Golden golden("elu_linear_attention/elu_linear");
  const Tensor q = golden["q"].clone().requires_grad_(), k = golden["k"].clone().requires_grad_(),
               v = golden["v"].clone().requires_grad_();
  const Tensor o = normalized(elu1(q), elu1(k), v, 1e-6);
  EXPECT_CLOSE(o, golden["out_causal"], 1e-5);
  const auto gradients = torch::autograd::grad({(o * golden["probe"]).sum()}, {q, k, v});
  EXPECT_CLOSE(gradients[0], golden["grad_causal.q"], 1e-4);
  EXPECT_CLOSE(gradients[1], golden["grad_causal.k"], 1e-4);
  EXPECT_CLOSE(gradients[2], golden["grad_causal.v"], 1e-4);
  const Tensor S = chunked(q, elu1(k), v, at::zeros({1, 2, 8, 8})).S;
  EXPECT_CLOSE(S, golden["state.S"], 1e-5);
  const Tensor ones = at::ones({1, 24, 2, 1});
  const Tensor z = chunked(q, elu1(k), ones, at::zeros({1, 2, 8, 1})).S.squeeze(3);
  EXPECT_CLOSE(z, golden["state.Z"], 1e-5);
}

/// The module with all its maps the identity is the golden of its paper: it normalises as the paper does.
TEST(LinearAttention, NormalizingModuleIsTheGolden) {
  const Golden golden("elu_linear_attention/elu_linear");
  const auto mixer =
      make_mixer("linear_attention", {{"num_attention_heads", 2}, {"feature_map", "elu1"}, {"normalize", true}}, 16);
  at::NoGradGuard no_grad;
  const Tensor x = golden["q"].flatten(2);
  for (auto& map : mixer->parameters()) map.copy_(at::eye(16));
  State state = mixer->initial_state(1);
  const Tensor o = mixer->forward(x, state);
  EXPECT_CLOSE(o.view({1, 24, 2, 8}), normalized(elu1(golden["q"]), elu1(golden["q"]), golden["q"], 1e-6), 1e-6);
  EXPECT_TRUE(state.has("z"));
}

struct Options {
  std::string feature_map = "identity", output_norm = "auto";
  bool normalize = false;
};

/// The layer as linear_attention.cc's head has it, one token after another.
Tensor naive_layer(const torch::OrderedDict<std::string, Tensor>& weights, const Options& options, const Tensor& x,
                   int64_t H) {
  const int64_t B = x.size(0), T = x.size(1), K = x.size(2) / H;
  const auto view = [&](const std::string& name) {
    return at::linear(x, weights[name + "_proj.weight"]).unflatten(2, {H, K});
  };
  const auto phi = [&](const Tensor& y) {
    return options.feature_map == "elu1" ? at::where(y > 0, y + 1, y.exp()) : y;
  };
  const Tensor q = phi(view("q")), k = phi(view("k")), v = view("v");
  Tensor S = at::zeros({B, H, K, K}, x.options()), z = at::zeros({B, H, K}, x.options());
  Tensor o = at::zeros({B, T, H, K}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    S = S + at::einsum("bhk,bhv->bhkv", {k.select(1, t), v.select(1, t)});
    z = z + k.select(1, t);
    const Tensor sum = at::einsum("bhkv,bhk->bhv", {S, q.select(1, t)});
    const Tensor weight = (z * q.select(1, t)).sum(-1, true);
    o.select(1, t).copy_(options.normalize ? sum / (weight + 1e-6) : sum / std::sqrt(static_cast<double>(K)));
  }
  const bool norm = options.output_norm == "on" || (options.output_norm == "auto" && !options.normalize);
  if (norm) o = o / (o.square().mean(-1, true) + 1e-5).sqrt() * weights["o_norm.weight"];
  return at::linear(o.flatten(2), weights["o_proj.weight"]);
}

TEST(LinearAttention, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t H = 3, D = 15;
  for (const Options& options : {Options{}, Options{"elu1"}, Options{"identity", "off"}, Options{"elu1", "auto", true},
                                 Options{"elu1", "on", true}}) {
    SCOPED_TRACE(text(options.feature_map, ", output_norm ", options.output_norm, ", normalize ", options.normalize));
    const auto mixer = make_mixer("linear_attention",
                                  {{"num_attention_heads", H},
                                   {"feature_map", options.feature_map},
                                   {"output_norm", options.output_norm},
                                   {"normalize", options.normalize},
                                   {"chunk_size", 4}},
                                  D);
    mixer->to(at::kDouble);
    uint64_t seed = 2;
    for (Tensor& parameter : mixer->parameters()) parameter.copy_(0.5 * normal(parameter.sizes(), seed++, at::kDouble));
    const Tensor x = normal({2, 13, D}, 1, at::kDouble);
    State state = mixer->initial_state(2);
    EXPECT_CLOSE(mixer->forward(x, state), naive_layer(mixer->named_parameters(), options, x, H), 1e-11);
  }
}

TEST(LinearAttention, RefusesWhatCannotBe) {
  const Json divides_by_zero = {{"normalize", true}};
  EXPECT_ERROR(make_mixer("linear_attention", divides_by_zero, 12), "expected feature_map elu1");
  EXPECT_ERROR(make_mixer("linear_attention", Json::object(), 13), "expected a divisor of hidden_size 13");
}

}  // namespace
}  // namespace lineal
