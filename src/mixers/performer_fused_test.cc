// Attention through random features by the fused kernel, against one token after another in float64: outputs, final
// state, every gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <random>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/feature_attention.h"
#include "mixers/random_features.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using kernels::FeatureAttentionInput;
using kernels::FeatureAttentionOutput;

struct Case {
  std::string map = "positive";
  int64_t B = 2, T = 40, H = 2, K = 8, V = 9, M = 24;
  bool documents = false;
  double size = 1;  // of keys and queries
};

std::string name(const Case& c) {
  return text(c.map, c.documents ? "_documents" : "", c.size > 1 ? "_long" : "", "_B", c.B, "_T", c.T, "_H", c.H, "_K",
              c.K, "_V", c.V, "_M", c.M);
}

bool is_softmax(const std::string& map) { return FeatureMap(map, 0).is_softmax(); }

struct Leaves {
  FeatureAttentionInput in;
  std::vector<std::pair<std::string, Tensor>> named;

  /// In float64, or as the kernel takes them: the same numbers.
  Leaves(const Case& c, at::ScalarType type) {
    const auto leaf = [&](const char* name, const Tensor& x) {
      named.emplace_back(name, x.to(at::kFloat).to(type).requires_grad_());
      return named.back().second;
    };
    in.q = leaf("q", c.size * normal({c.B, c.T, c.H, c.K}, 1));
    in.k = leaf("k", c.size * normal({c.B, c.T, c.H, c.K}, 2));
    in.v = leaf("v", normal({c.B, c.T, c.H, c.V}, 3));
    in.projection = normal({c.M, c.K}, 4).to(at::kFloat).to(type);
    in.map = c.map;
    in.scale = std::pow(static_cast<double>(c.K), -0.25);
    in.epsilon = is_softmax(c.map) ? 1e-6 : 1e-3;
    in.S = leaf("S", 0.1 * normal({c.B, c.H, FeatureMap(c.map, 0).count(c.M), c.V}, 6));
    if (is_softmax(c.map)) in.peak = leaf("peak", 1.5 + 0.1 * normal({c.B, c.H}, 7));
    in.fresh = at::arange(c.B).remainder(2) == 1;  // every other row begins a document
    if (!c.documents) return;
    in.starts = at::zeros({c.B, c.T}, at::kBool);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t t = 3 * b; t < c.T; t += 11 + 40 * b) in.starts[b][t] = true;
    }
  }
};

/// phi of x [B, H, K] for a shift [B, H], or none; and the largest exponent.
std::pair<Tensor, Tensor> features(const FeatureAttentionInput& in, const Tensor& x, const Tensor* peak_before,
                                   const Tensor& fresh) {
  const FeatureMap phi(in.map, in.epsilon);
  const auto projected = FeatureMap::project(x * in.scale, in.projection);
  if (!phi.is_softmax()) return {phi(projected, {}), {}};
  const Tensor own = phi.peak(projected).squeeze(2);
  const Tensor peak = peak_before ? at::where(fresh, own, at::maximum(own, *peak_before)) : own;
  return {phi(projected, peak.unsqueeze(2)), peak};
}

FeatureAttentionOutput one_by_one(const FeatureAttentionInput& in) {
  Tensor S = in.S, peak = in.peak;
  std::vector<Tensor> o;
  for (int64_t t = 0; t < in.q.size(1); ++t) {
    Tensor starts = at::zeros_like(in.fresh);
    if (in.starts.defined()) starts = in.starts.select(1, t);
    S = at::where(starts.view({-1, 1, 1, 1}), 0, S);
    const Tensor fresh = (t == 0 ? starts.logical_or(in.fresh) : starts).unsqueeze(1);
    const auto [phi_k, now] = features(in, in.k.select(1, t), peak.defined() ? &peak : nullptr, fresh);
    if (peak.defined()) {
      S = at::where(fresh, 0, peak - now).exp().unsqueeze(2).unsqueeze(3) * S;
      peak = now;
    }
    S = S + phi_k.unsqueeze(3) * in.v.select(1, t).unsqueeze(2);
    o.push_back(at::einsum("bhf,bhfv->bhv", {features(in, in.q.select(1, t), nullptr, {}).first, S}));
  }
  return {at::stack(o, 1), S, peak};
}

FeatureAttentionOutput fused(const FeatureAttentionInput& in) {
  kernels::choose(kernels::Choice::fused);
  auto out = kernels::use(kernels::feature_attention, one_by_one, in);
  kernels::choose(kernels::Choice::automatic);
  return out;
}

FeatureAttentionOutput fused_in_documents(const FeatureAttentionInput& in) {
  kernels::choose(kernels::Choice::fused);
  auto out = feature_attention_in_documents(in);
  kernels::choose(kernels::Choice::automatic);
  return out;
}

/// Results and gradients through all of them, by name.
std::vector<std::pair<std::string, Tensor>> outcome(const Leaves& leaves,
                                                    FeatureAttentionOutput (*f)(const FeatureAttentionInput&)) {
  const FeatureAttentionOutput out = f(leaves.in);
  const auto weights = [](const Tensor& x, uint64_t seed) {  // the same for a row in any batch
    return normal(x[0].sizes(), seed).to(x.scalar_type());
  };
  Tensor loss = (out.o * weights(out.o, 100)).sum() + (out.S * weights(out.S, 101)).sum();
  if (out.peak.defined()) loss = loss + (out.peak * weights(out.peak, 102)).sum();
  std::vector<Tensor> inputs;
  for (const auto& [_, x] : leaves.named) inputs.push_back(x);
  const auto gradients = torch::autograd::grad({loss}, inputs);
  std::vector<std::pair<std::string, Tensor>> result = {{"o", out.o}, {"S after", out.S}};
  if (out.peak.defined()) result.emplace_back("peak after", out.peak);
  for (size_t i = 0; i < inputs.size(); ++i) result.emplace_back("gradient of " + leaves.named[i].first, gradients[i]);
  return result;
}

void expect_reference(const std::vector<std::pair<std::string, Tensor>>& got, const Case& c,
                      FeatureAttentionOutput (*reference)(const FeatureAttentionInput&) = one_by_one) {
  const auto expected = outcome(Leaves(c, at::kDouble), reference);
  for (size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE(name(c) + ": " + expected[i].first);
    EXPECT_CLOSE_RMS(got[i].second, expected[i].second, expected[i].first.starts_with("gradient") ? 1e-4 : 1e-5);
  }
}

class FusedFeatureAttentionShapes : public testing::TestWithParam<Case> {};

TEST_P(FusedFeatureAttentionShapes, IsOneTokenAfterAnother) {
  expect_reference(outcome(Leaves(GetParam(), at::kFloat), fused), GetParam());
}

std::vector<Case> random_cases(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto between = [&](int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
  };
  std::vector<Case> list;
  for (int i = 0; i < 12; ++i) {
    list.push_back({.map = std::vector{"positive", "hyperbolic", "trig", "relu"}[static_cast<size_t>(between(0, 3))],
                    .B = between(1, 3),
                    .T = between(1, 80),
                    .H = between(1, 3),
                    .K = between(1, 40),
                    .V = between(1, 40),
                    .M = between(1, 70),
                    .documents = between(0, 1) == 1});
  }
  return list;
}

TEST(FusedFeatureAttention, AtRandomShapes) {
  for (const Case& c : random_cases(7)) expect_reference(outcome(Leaves(c, at::kFloat), fused), c);
}

/// Without gradients one token takes another way through the kernels than many.
TEST(FusedFeatureAttention, OneTokenAlone) {
  for (const char* map : {"positive", "hyperbolic", "trig", "relu"}) {
    for (const bool documents : {false, true}) {
      const Case c{.map = map, .B = 3, .T = 1, .K = 5, .V = 33, .M = 19, .documents = documents};
      const auto expected = one_by_one(Leaves(c, at::kDouble).in);
      const Leaves leaves(c, at::kFloat);
      at::NoGradGuard no_grad;
      const auto got = fused(leaves.in);
      SCOPED_TRACE(name(c));
      EXPECT_CLOSE_RMS(got.o, expected.o, 1e-5);
      EXPECT_CLOSE_RMS(got.S, expected.S, 1e-5);
      if (!expected.peak.defined()) continue;
      EXPECT_CLOSE_RMS(got.peak, expected.peak, 1e-5);
    }
  }
}

TEST(FusedFeatureAttention, NumbersDependOnNeitherThreadsNorGradients) {
  const int threads = at::get_num_threads();
  for (const Case& c : {Case{.B = 1, .T = 75, .H = 1, .K = 24, .V = 52, .M = 40},
                        Case{.map = "relu", .B = 1, .T = 700, .H = 1, .K = 24, .V = 20, .M = 40}}) {
    const Leaves leaves(c, at::kFloat);
    at::set_num_threads(1);
    const auto alone = outcome(leaves, fused);
    for (const int count : {2, 3, 8}) {
      at::set_num_threads(count);
      const auto got = outcome(leaves, fused);
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(bit_difference(got[i].second, alone[i].second), "")
            << name(c) << ": " << got[i].first << ", " << count << " threads";
      }
      at::NoGradGuard no_grad;
      EXPECT_EQ(bit_difference(fused(leaves.in).o, alone[0].second), "") << count << " threads, no gradients";
    }
  }
  at::set_num_threads(threads);
}

TEST_P(FusedFeatureAttentionShapes, InDocumentsIsItsReference) {
  expect_reference(outcome(Leaves(GetParam(), at::kFloat), fused_in_documents), GetParam(),
                   feature_attention_in_documents_reference);
}

TEST(FusedFeatureAttention, InDocumentsAtRandomShapes) {
  for (const Case& c : random_cases(8)) {
    expect_reference(outcome(Leaves(c, at::kFloat), fused_in_documents), c, feature_attention_in_documents_reference);
  }
}

/// Keys of exponents far beyond float32's range.
TEST(FusedFeatureAttention, TheRunningMaximumKeepsLongKeysFinite) {
  const Case c{.T = 90, .size = 9};
  expect_reference(outcome(Leaves(c, at::kFloat), fused), c);
}

TEST(FusedFeatureAttention, ErrorsNameTheTensor) {
  auto in = Leaves({}, at::kFloat).in;
  in.peak = at::ones({2, 1});
  EXPECT_ERROR(fused(in), "feature_attention: peak is [2, 1], expected [2, 2]");
  kernels::choose(kernels::Choice::automatic);
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const char* map :
       {"positive", "hyperbolic", "trig", "relu", "sigmoid", "exp", "abs", "cos", "tanh", "identity"}) {
    list.push_back({.map = map});
    list.push_back({.map = map, .B = 3, .T = 70, .H = 1, .K = 17, .V = 20, .M = 21, .documents = true});
  }
  for (int64_t T : {1, 7, 16, 63, 300}) list.push_back({.B = 1, .T = T, .H = 1});
  for (const auto& [K, M] : std::vector<std::pair<int64_t, int64_t>>{{16, 256}, {60, 128}, {64, 100}, {100, 33}}) {
    list.push_back({.T = 45, .H = 1, .K = K, .V = 65, .M = M});
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedFeatureAttentionShapes, testing::ValuesIn(cases()),
                         [](const auto& info) { return name(info.param); });

}  // namespace
}  // namespace lineal
