// The fused linear recurrences against one token after another in float64: outputs, final state, every gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/chunks.h"
#include "mixers/delta_net.h"
#include "mixers/linear_attention.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using kernels::RecurrenceInput;
using kernels::RecurrenceOutput;

struct Case {
  int64_t B = 2, T = 40, H = 3, K = 16, V = 12;
  bool delta = false, decay = false, documents = false;
};

std::string name(const Case& c) {
  return text(c.delta ? "delta" : "attention", c.decay ? "_decay" : "", c.documents ? "_documents" : "", "_B", c.B,
              "_T", c.T, "_H", c.H, "_K", c.K, "_V", c.V);
}

struct Leaves {
  RecurrenceInput in;
  std::vector<std::pair<std::string, Tensor>> named;

  Leaves(const Case& c, at::ScalarType type) {
    const auto leaf = [&](const char* name, const Tensor& x) {
      named.emplace_back(name, x.to(type).requires_grad_());
      return named.back().second;
    };
    const Tensor k = normal({c.B, c.T, c.H, c.K}, 2);
    in.q = leaf("q", normal({c.B, c.T, c.H, c.K}, 1) / std::sqrt(static_cast<double>(c.K)));
    in.k = leaf("k", k / k.norm(2, {-1}, true));
    in.v = leaf("v", normal({c.B, c.T, c.H, c.V}, 3));
    if (c.delta) in.beta = leaf("beta", 1.5 * normal({c.B, c.T, c.H}, 4).sigmoid());
    if (c.decay) in.g = leaf("g", -0.3 * normal({c.B, c.T, c.H}, 5).square());
    in.S = leaf("S", normal({c.B, c.H, c.K, c.V}, 6));
    if (!c.documents) return;
    in.starts = at::zeros({c.B, c.T}, at::kBool);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t t = 3 * b; t < c.T; t += 11 + 40 * b) in.starts[b][t] = true;
    }
  }
};

/// One token after another, with a decay.
RecurrenceOutput decayed(const RecurrenceInput& in) {
  Tensor S = in.S;
  std::vector<Tensor> o;
  for (int64_t t = 0; t < in.q.size(1); ++t) {
    const auto row = [&](const Tensor& x) { return x.select(1, t).unsqueeze(2); };  // [B, H, 1, ...]
    S = restart(S, {in.starts}, t) * row(in.g).unsqueeze(3).exp();
    const Tensor u = in.beta.defined() ? row(in.beta).unsqueeze(3) * (row(in.v) - at::matmul(row(in.k), S)) : row(in.v);
    S = S + row(in.k).transpose(2, 3) * u;
    o.push_back(at::matmul(row(in.q), S).squeeze(2));
  }
  return {at::stack(o, 1), S};
}

RecurrenceOutput reference(const RecurrenceInput& in) {
  if (in.g.defined()) return decayed(in);
  const auto [o, S] = in.beta.defined() ? delta_rule_reference(in.q, in.k, in.v, in.beta, in.S, {in.starts})
                                        : linear_attention_reference(in.q, in.k, in.v, in.S, {in.starts});
  return {o, S};
}

RecurrenceOutput fused(const RecurrenceInput& in) {
  kernels::choose(kernels::Choice::fused);
  auto out = kernels::use(in.beta.defined() ? kernels::delta_rule : kernels::linear_attention, reference, in);
  kernels::choose(kernels::Choice::automatic);
  return out;
}

/// Results and gradients through both of them, by name.
std::vector<std::pair<std::string, Tensor>> outcome(const Leaves& leaves,
                                                    RecurrenceOutput (*f)(const RecurrenceInput&)) {
  const RecurrenceOutput out = f(leaves.in);
  const auto weights = [](const Tensor& x, uint64_t seed) {  // the same for a row in any batch
    return normal(x[0].sizes(), seed).to(x.scalar_type());
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

TEST_P(FusedRecurrenceShapes, IsOneTokenAfterAnother) {
  const auto expected = outcome(Leaves(GetParam(), at::kDouble), reference);
  const auto got = outcome(Leaves(GetParam(), at::kFloat), fused);
  for (size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE(expected[i].first);
    EXPECT_CLOSE_RMS(got[i].second, expected[i].second, i < 2 ? 1e-5 : 1e-4);
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

const Case kAll{.B = 5, .T = 75, .H = 2, .K = 24, .V = 20, .delta = true, .decay = true, .documents = true};

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
  Case c = kAll;
  c.documents = false;
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

TEST(FusedRecurrence, NothingFallsBackSilently) {
  const auto in = Leaves(kAll, at::kDouble).in;
  const int64_t before = kernels::delta_rule.reference;
  kernels::use(kernels::delta_rule, reference, in);
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
  EXPECT_ERROR(kernels::use(kernels::delta_rule, reference, in),
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
    for (const bool decay : {false, true}) {
      list.push_back({.B = 3, .T = 140, .delta = delta, .decay = decay, .documents = true});
      list.push_back({.T = 300, .K = 9, .V = 33, .delta = delta, .decay = decay, .documents = true});
    }
    for (int64_t T : {1, 13, 150}) list.push_back({.T = T, .K = 24, .V = 18, .delta = delta, .decay = true});
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedRecurrenceShapes, testing::ValuesIn(cases()),
                         [](const auto& info) { return name(info.param); });

}  // namespace
}  // namespace lineal
