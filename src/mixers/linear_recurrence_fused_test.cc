// The fused linear recurrences against one token after another in float64: outputs, final state, every gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <random>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/linear_recurrence.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using kernels::RecurrenceInput;
using kernels::RecurrenceOutput;

enum Decay { none, token, channel };

struct Case {
  int64_t B = 2, T = 40, H = 3, K = 16, V = 12;
  bool delta = false, documents = false;
  Decay decay = none;
  bool strong = false;    // decays down to exp(-30) beside those of hardly anything
  bool bfloat16 = false;  // q, k, v and o
};

std::string name(const Case& c) {
  return text(c.delta ? "delta" : "attention", std::vector{"", "_decay", "_channels"}[c.decay],
              c.strong ? "_strong" : "", c.documents ? "_documents" : "", c.bfloat16 ? "_bfloat16" : "", "_B", c.B,
              "_T", c.T, "_H", c.H, "_K", c.K, "_V", c.V);
}

struct Leaves {
  RecurrenceInput in;
  std::vector<std::pair<std::string, Tensor>> named;

  /// In float64, or as the kernel takes them: the same numbers.
  Leaves(const Case& c, at::ScalarType type) {
    const auto leaf = [&](const char* name, const Tensor& x) {
      named.emplace_back(name, x.to(type).requires_grad_());
      return named.back().second;
    };
    const auto token_leaf = [&](const char* name, const Tensor& x) {
      if (!c.bfloat16) return leaf(name, x);
      named.emplace_back(name, x.to(at::kBFloat16).to(type == at::kFloat ? at::kBFloat16 : type).requires_grad_());
      return named.back().second;
    };
    const Tensor k = normal({c.B, c.T, c.H, c.K}, 2);
    in.q = token_leaf("q", normal({c.B, c.T, c.H, c.K}, 1) / std::sqrt(static_cast<double>(c.K)));
    in.k = token_leaf("k", k / k.norm(2, {-1}, true));
    in.v = token_leaf("v", normal({c.B, c.T, c.H, c.V}, 3));
    if (c.delta) in.beta = leaf("beta", 1.5 * normal({c.B, c.T, c.H}, 4).sigmoid());
    if (c.decay != none) {
      const Tensor g = c.decay == channel ? normal({c.B, c.T, c.H, c.K}, 5) : normal({c.B, c.T, c.H}, 5);
      in.g = leaf("g", c.strong ? (-5 * g.pow(4)).clamp_min(-30) : -0.3 * g.square());
    }
    in.S = leaf("S", normal({c.B, c.H, c.K, c.V}, 6));
    if (!c.documents) return;
    in.starts = at::zeros({c.B, c.T}, at::kBool);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t t = 3 * b; t < c.T; t += 11 + 40 * b) in.starts[b][t] = true;
    }
  }
};

RecurrenceOutput fused(const RecurrenceInput& in) {
  kernels::choose(kernels::Choice::fused);
  auto out = kernels::use(in.beta.defined() ? kernels::delta_rule : kernels::linear_attention,
                          linear_recurrence_reference, in);
  kernels::choose(kernels::Choice::automatic);
  return out;
}

/// Results and gradients through both of them, by name.
std::vector<std::pair<std::string, Tensor>> outcome(const Leaves& leaves,
                                                    RecurrenceOutput (*f)(const RecurrenceInput&)) {
  const RecurrenceOutput out = f(leaves.in);
  const auto weights = [](const Tensor& x, uint64_t seed) {  // the same for a row in any batch
    return normal(x[0].sizes(), seed).to(at::kBFloat16).to(x.scalar_type());
  };
  const Tensor loss = (out.o * weights(out.o, 100)).sum() + (out.S * weights(out.S, 101)).sum();
  std::vector<Tensor> inputs;
  for (const auto& [_, x] : leaves.named) inputs.push_back(x);
  const auto gradients = torch::autograd::grad({loss}, inputs);
  std::vector<std::pair<std::string, Tensor>> result = {{"o", out.o}, {"S after", out.S}};
  for (size_t i = 0; i < inputs.size(); ++i) result.emplace_back("gradient of " + leaves.named[i].first, gradients[i]);
  return result;
}

class FusedRecurrenceShapes : public testing::TestWithParam<Case> {};

/// Results first, gradients from the third on.
void expect_reference(const std::vector<std::pair<std::string, Tensor>>& got, const Case& c) {
  const auto expected = outcome(Leaves(c, at::kDouble), linear_recurrence_reference);
  for (size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE(name(c) + ": " + expected[i].first);
    const double tolerance = c.bfloat16 ? (i < 2 ? 5e-3 : 8e-3) : (i < 2 ? 1e-5 : 1e-4);
    EXPECT_CLOSE_RMS(got[i].second, expected[i].second, tolerance);
  }
}

TEST_P(FusedRecurrenceShapes, IsOneTokenAfterAnother) {
  expect_reference(outcome(Leaves(GetParam(), at::kFloat), fused), GetParam());
}

TEST(FusedRecurrence, IsOneTokenAfterAnotherAtRandomShapes) {
  std::mt19937_64 random(7);
  const auto between = [&](int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
  };
  for (int i = 0; i < 60; ++i) {
    const Case c{.B = between(1, 3),
                 .T = between(1, 110),
                 .H = between(1, 3),
                 .K = between(1, 70),
                 .V = between(1, 70),
                 .delta = between(0, 1) == 1,
                 .documents = between(0, 1) == 1,
                 .decay = static_cast<Decay>(between(none, channel)),
                 .strong = between(0, 1) == 1,
                 .bfloat16 = between(0, 3) == 0};
    expect_reference(outcome(Leaves(c, at::kFloat), fused), c);
  }
}

/// With gradients and without: one token takes another way through the kernels than many.
TEST(FusedRecurrence, OneTokenAlone) {
  for (const auto& [K, V] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {9, 33}, {64, 64}, {20, 81}}) {
    for (const bool delta : {false, true}) {
      for (const Decay decay : {none, token, channel}) {
        for (const bool bfloat16 : {false, true}) {
          const Case c{
              .B = 3, .T = 1, .K = K, .V = V, .delta = delta, .documents = true, .decay = decay, .bfloat16 = bfloat16};
          expect_reference(outcome(Leaves(c, at::kFloat), fused), c);
          const auto expected = linear_recurrence_reference(Leaves(c, at::kDouble).in);
          const Leaves leaves(c, at::kFloat);
          at::NoGradGuard no_grad;
          const auto got = fused(leaves.in);
          SCOPED_TRACE(name(c));
          EXPECT_CLOSE_RMS(got.o, expected.o, bfloat16 ? 5e-3 : 1e-5);
          EXPECT_CLOSE_RMS(got.S, expected.S, 1e-5);
        }
      }
    }
  }
}

TEST(FusedRecurrence, Goldens) {
  for (const char* id : {"linear_attn", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda"}) {
    SCOPED_TRACE(id);
    const Golden golden(text("linear_family/", id));
    std::vector<std::string> names = {"q", "k", "v"};
    RecurrenceInput in;
    const auto leaf = [&](const std::string& name) { return golden[name].to(at::kFloat).requires_grad_(); };
    in.q = leaf("q"), in.k = leaf("k"), in.v = leaf("v");
    std::vector<Tensor> inputs = {in.q, in.k, in.v};
    for (const auto& [name, x] : {std::pair("beta", &in.beta), {"g", &in.g}, {"gk", &in.g}}) {
      if (!golden.has(name)) continue;
      *x = leaf(name);
      names.push_back(name);
      inputs.push_back(*x);
    }
    RecurrenceInput scaled = in;
    scaled.q = in.q / std::sqrt(static_cast<double>(in.q.size(3)));
    scaled.S = at::zeros({in.q.size(0), in.q.size(2), in.q.size(3), in.v.size(3)});
    const auto out = fused(scaled);
    EXPECT_CLOSE_RMS(out.o, golden["o"], 1e-5);
    EXPECT_CLOSE_RMS(out.S, golden["final_state"], 1e-5);
    const auto gradients = torch::autograd::grad({(out.o * golden["probe"]).sum()}, inputs);
    for (size_t i = 0; i < names.size(); ++i) {
      EXPECT_CLOSE_RMS(gradients[i], golden["grad." + names[i]], 1e-4) << names[i];
    }
    if (!golden.has("o_init")) continue;
    scaled.S = golden["init_state"];
    EXPECT_CLOSE_RMS(fused(scaled).o, golden["o_init"], 1e-5);
    EXPECT_CLOSE_RMS(fused(scaled).S, golden["final_state_init"], 1e-5);
  }
}

/// The leaves with f applied to each tensor.
Leaves mapped(Leaves leaves, const std::function<Tensor(const Tensor&)>& f) {
  RecurrenceInput& in = leaves.in;
  if (in.starts.defined()) in.starts = f(in.starts);
  for (Tensor* x : {&in.q, &in.k, &in.v, &in.beta, &in.g, &in.S}) {
    if (!x->defined()) continue;
    const Tensor before = *x;
    *x = f(before.detach()).requires_grad_();
    for (auto& [_, leaf] : leaves.named) {
      if (leaf.is_same(before)) leaf = *x;
    }
  }
  return leaves;
}

const Case kAll{.B = 5, .T = 75, .H = 2, .K = 24, .V = 20, .delta = true, .documents = true, .decay = token};

TEST(FusedRecurrence, ARowDoesNotDependOnItsBatchNorOnThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto together = outcome(Leaves(kAll, at::kFloat), fused);
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    for (const std::vector<int64_t>& index : {std::vector<int64_t>{0, 1, 2, 3, 4}, {3}, {1, 4}}) {
      const auto picked = [&](const Tensor& x) { return x.index_select(0, at::tensor(index, at::kLong)); };
      const auto some = outcome(mapped(Leaves(kAll, at::kFloat), picked), fused);
      for (size_t i = 0; i < some.size(); ++i) {
        EXPECT_EQ(bit_difference(some[i].second, picked(together[i].second)), "")
            << some[i].first << ", " << count << " threads, rows " << index.size();
      }
    }
  }
  at::set_num_threads(threads);
}

/// Several states are saved of the long rows, for threads to begin at, and one of the short ones.
TEST(FusedRecurrence, FewerHeadsThanThreads) {
  const int threads = at::get_num_threads();
  for (const Case& c : {Case{.B = 1, .T = 75, .H = 1, .K = 24, .V = 52, .delta = true, .decay = channel},
                        Case{.B = 1, .T = 700, .H = 1, .K = 24, .V = 52, .delta = true, .decay = channel},
                        Case{.B = 2, .T = 700, .H = 1, .K = 24, .V = 20, .delta = true, .documents = true},
                        Case{.B = 1, .T = 700, .H = 1, .K = 24, .V = 20, .documents = true, .decay = token},
                        Case{.B = 1, .T = 700, .H = 1, .K = 24, .V = 20, .decay = channel},
                        Case{.B = 1, .T = 700, .H = 2, .K = 24, .V = 20}}) {
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
    }
  }
  at::set_num_threads(threads);
}

TEST(FusedRecurrence, TakesTensorsOfAnyStride) {
  const auto strided = [](const Tensor& x) {
    return at::stack({x, x.logical_not().to(x.scalar_type())}, -1).select(-1, 0);
  };
  const auto got = outcome(mapped(Leaves(kAll, at::kFloat), strided), fused);
  const auto expected = outcome(Leaves(kAll, at::kFloat), fused);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(bit_difference(got[i].second, expected[i].second), "") << got[i].first;
  }
}

TEST(FusedRecurrence, WithoutGradientsTheNumbersAreTheSame) {
  for (const bool delta : {false, true}) {
    Case c = kAll;
    c.delta = delta;
    const Leaves leaves(c, at::kFloat);
    const RecurrenceOutput expected = fused(leaves.in);
    at::NoGradGuard no_grad;
    const RecurrenceOutput got = fused(leaves.in);
    EXPECT_EQ(bit_difference(got.o, expected.o), "");
    EXPECT_EQ(bit_difference(got.S, expected.S), "");
  }
}

/// A decay to nothing is the start of a document, for the state that comes in and for its gradient.
TEST(FusedRecurrence, ADecayOfZeroForgetsEverything) {
  for (const Decay decay : {token, channel}) {
    Case c = kAll;
    c.documents = false;
    c.decay = decay;
    Leaves leaves(c, at::kFloat);
    at::NoGradGuard no_grad;
    leaves.in.g.select(1, 41).fill_(-INFINITY);
    const RecurrenceOutput got = fused(leaves.in);
    leaves.in.g.select(1, 41).fill_(0);
    leaves.in.starts = at::zeros({c.B, c.T}, at::kBool);
    leaves.in.starts.select(1, 41).fill_(true);
    const RecurrenceOutput expected = fused(leaves.in);
    EXPECT_CLOSE_RMS(got.o, expected.o, 1e-5);
    EXPECT_CLOSE_RMS(got.S, expected.S, 1e-5);
  }
}

TEST(FusedRecurrence, NothingFallsBackSilently) {
  const auto in = Leaves(kAll, at::kDouble).in;
  const int64_t before = kernels::delta_rule.reference;
  kernels::use(kernels::delta_rule, linear_recurrence_reference, in);
  EXPECT_EQ(kernels::delta_rule.reference, before + 1);
  EXPECT_ERROR(fused(in), "delta_rule: no fused kernel");
  kernels::choose(kernels::Choice::automatic);
  const auto second_derivative = [&] {
    const Leaves leaves(kAll, at::kFloat);
    torch::autograd::grad({fused(leaves.in).o.sum()}, {leaves.in.q}, {}, true, /*create_graph=*/true);
  };
  EXPECT_ERROR(second_derivative(), "no second derivative");
}

TEST(FusedRecurrence, ErrorsNameTheTensor) {
  auto in = Leaves(kAll, at::kFloat).in;
  in.beta = at::ones({5, 75, 1});
  EXPECT_ERROR(kernels::use(kernels::delta_rule, linear_recurrence_reference, in),
               "delta_rule: beta is [5, 75, 1], expected [B=5, T=75, H=2]");
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const bool delta : {false, true}) {
    for (int64_t T : {1, 7, 16, 63, 1000}) list.push_back({.B = 1, .T = T, .K = 16, .V = 20, .delta = delta});
    for (const auto& [K, V] : std::vector<std::pair<int64_t, int64_t>>{
             {2, 3}, {16, 60}, {60, 64}, {64, 100}, {100, 128}, {128, 16}, {256, 33}}) {
      list.push_back({.T = 45, .H = 1, .K = K, .V = V, .delta = delta});
    }
    for (const Decay decay : {none, token, channel}) {
      list.push_back({.B = 3, .T = 140, .delta = delta, .documents = true, .decay = decay});
      list.push_back({.T = 300, .K = 9, .V = 33, .delta = delta, .documents = true, .decay = decay});
      list.push_back({.T = 90, .K = 33, .V = 40, .delta = delta, .documents = true, .decay = decay, .bfloat16 = true});
      if (decay == none) continue;
      for (int64_t T : {1, 13, 150}) list.push_back({.T = T, .K = 24, .V = 18, .delta = delta, .decay = decay});
      list.push_back({.T = 70, .K = 24, .V = 18, .delta = delta, .decay = decay, .strong = true});
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedRecurrenceShapes, testing::ValuesIn(cases()),
                         [](const auto& info) { return name(info.param); });

}  // namespace
}  // namespace lineal
