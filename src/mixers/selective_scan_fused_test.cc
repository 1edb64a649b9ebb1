// The fused selective scan against one token after another in float64: outputs, final state, every gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <random>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/mamba.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using kernels::ScanInput;
using kernels::ScanOutput;

struct Case {
  int64_t B = 2, T = 40, D = 24, G = 1, N = 16;
  bool skip = true, gate = true, bias = true, softplus = true, documents = false, bfloat16 = false;
};

std::string name(const Case& c) {
  return text("B", c.B, "_T", c.T, "_D", c.D, "_G", c.G, "_N", c.N, c.skip ? "_skip" : "", c.gate ? "_gate" : "",
              c.bias ? "_bias" : "", c.softplus ? "_softplus" : "", c.documents ? "_documents" : "",
              c.bfloat16 ? "_bfloat16" : "");
}

struct Leaves {
  ScanInput in;
  std::vector<std::pair<std::string, Tensor ScanInput::*>> named;

  /// With `bfloat16` the tokens are rounded to it, whatever type they are kept in.
  Leaves(const Case& c, at::ScalarType tokens, at::ScalarType parameters) {
    const auto add = [&](const char* name, Tensor ScanInput::*member, Tensor x, at::ScalarType type) {
      if (c.bfloat16 && (x.dim() > 2 && member != &ScanInput::h)) x = x.to(at::kBFloat16);
      in.*member = x.to(type).requires_grad_();
      named.emplace_back(name, member);
    };
    const Tensor step = normal({c.B, c.T, c.D}, 2);
    add("u", &ScanInput::u, normal({c.B, c.T, c.D}, 1), tokens);
    add("delta", &ScanInput::delta, c.softplus ? step - 1 : 0.3 * step.abs(), tokens);
    add("A", &ScanInput::A, -normal({c.D, c.N}, 3).exp(), parameters);
    add("B", &ScanInput::B, normal({c.B, c.T, c.G, c.N}, 4), tokens);
    add("C", &ScanInput::C, normal({c.B, c.T, c.G, c.N}, 5), tokens);
    if (c.skip) add("D", &ScanInput::D, normal({c.D}, 6), parameters);
    if (c.gate) add("z", &ScanInput::z, normal({c.B, c.T, c.D}, 7), tokens);
    if (c.bias) add("bias", &ScanInput::bias, c.softplus ? normal({c.D}, 8) : normal({c.D}, 8).abs() / 10, parameters);
    in.softplus = c.softplus;
    add("h", &ScanInput::h, normal({c.B, c.D, c.N}, 9), parameters);
    if (!c.documents) return;
    in.starts = at::zeros({c.B, c.T}, at::kBool);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t t = 3 * b; t < c.T; t += 11 + 40 * b) in.starts[b][t] = true;
      in.starts[b].slice(0, 32, 34).fill_(true);  // one that begins a chunk, and one of a single token
    }
  }
  explicit Leaves(const Case& c) : Leaves(c, c.bfloat16 ? at::kBFloat16 : at::kFloat, at::kFloat) {}

  /// The leaves of another tensor each.
  Leaves mapped(const std::function<Tensor(const Tensor&)>& tokens, bool parameters = false) const {
    Leaves result = *this;
    if (in.starts.defined()) result.in.starts = tokens(in.starts);
    for (const auto& [name, member] : named) {
      const bool has_rows = member != &ScanInput::A && member != &ScanInput::D && member != &ScanInput::bias;
      const Tensor x = (in.*member).detach();
      result.in.*member = (has_rows || parameters ? tokens(x) : x.clone()).requires_grad_();
    }
    return result;
  }
};

ScanOutput reference(const ScanInput& in) { return around_scan(in, selective_scan_reference); }

ScanOutput fused(const ScanInput& in) {
  kernels::choose(kernels::Choice::fused);
  auto out = kernels::use(kernels::selective_scan, reference, in);
  kernels::choose(kernels::Choice::automatic);
  return out;
}

/// Results and gradients through both of them, by name.
std::vector<std::pair<std::string, Tensor>> outcome(const Leaves& leaves, ScanOutput (*f)(const ScanInput&)) {
  const ScanOutput out = f(leaves.in);
  const auto weights = [](const Tensor& x, uint64_t seed) {  // the same for a row in any batch
    return normal(x[0].sizes(), seed).to(at::kBFloat16).to(x.scalar_type());
  };
  const Tensor loss = (out.y * weights(out.y, 100)).sum(at::kDouble) + (out.h * weights(out.h, 101)).sum(at::kDouble);
  std::vector<Tensor> inputs;
  for (const auto& [_, member] : leaves.named) inputs.push_back(leaves.in.*member);
  const auto gradients = torch::autograd::grad({loss}, inputs);
  std::vector<std::pair<std::string, Tensor>> result = {{"y", out.y}, {"h after", out.h}};
  for (size_t i = 0; i < inputs.size(); ++i) result.emplace_back("gradient of " + leaves.named[i].first, gradients[i]);
  return result;
}

void expect_reference(const Case& c) {
  const auto expected = outcome(Leaves(c, at::kDouble, at::kDouble), reference);
  const auto got = outcome(Leaves(c), fused);
  for (size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE(name(c) + ": " + expected[i].first);
    EXPECT_CLOSE_RMS(got[i].second, expected[i].second, c.bfloat16 ? (i < 2 ? 5e-3 : 8e-3) : (i < 2 ? 1e-5 : 1e-4));
  }
}

void expect_equal(const std::vector<std::pair<std::string, Tensor>>& got,
                  const std::vector<std::pair<std::string, Tensor>>& expected,
                  const std::function<Tensor(const std::string&, const Tensor&)>& part, const std::string& what) {
  for (size_t i = 0; i < got.size(); ++i) {
    const Tensor wanted = part(expected[i].first, expected[i].second);
    if (wanted.defined()) {
      EXPECT_EQ(bit_difference(got[i].second, wanted), "") << got[i].first << ", " << what;
    }
  }
}
Tensor whole(const std::string&, const Tensor& x) { return x; }

class FusedScanShapes : public testing::TestWithParam<Case> {};

TEST_P(FusedScanShapes, IsOneTokenAfterAnother) { expect_reference(GetParam()); }

TEST(FusedScan, RandomShapes) {
  std::mt19937 random(20231201);
  const auto up_to = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)) + 1; };
  for (int i = 0; i < 60; ++i) {
    Case c{.B = up_to(3), .T = up_to(90), .G = up_to(3), .N = up_to(20)};
    c.D = c.G * up_to(40);
    for (bool* flag : {&c.skip, &c.gate, &c.bias, &c.softplus, &c.documents}) *flag = random() % 2 == 0;
    c.documents = c.documents && c.T > 33;
    c.bfloat16 = i % 4 == 0 && c.B * c.T * c.D > 500;  // of few numbers the rounding errors' mean square is a lottery
    expect_reference(c);
  }
}

const Case kAll{.B = 5, .T = 75, .D = 66, .G = 2, .N = 13, .documents = true};

/// Gradients of what rows share are sums over the batch: equal for any threads, not for other rows.
TEST(FusedScan, ARowDoesNotDependOnItsBatchNorOnThreads) {
  const int threads = at::get_num_threads();
  for (const bool bfloat16 : {false, true}) {
    Case c = kAll;
    c.bfloat16 = bfloat16;
    at::set_num_threads(1);
    const auto together = outcome(Leaves(c), fused);
    for (const int count : {1, 2, 3}) {
      at::set_num_threads(count);
      expect_equal(outcome(Leaves(c), fused), together, whole, text(count, " threads"));
      for (const std::vector<int64_t>& index : {std::vector<int64_t>{3}, {1, 4}}) {
        const auto picked = [&](const Tensor& x) { return x.index_select(0, at::tensor(index, at::kLong)); };
        const auto rows = [&](const std::string& name, const Tensor& x) {
          const bool shared = name == "gradient of A" || name == "gradient of D" || name == "gradient of bias";
          return shared ? Tensor() : picked(x);
        };
        expect_equal(outcome(Leaves(c).mapped(picked), fused), together, rows,
                     text(count, " threads, ", index.size(), " rows"));
      }
    }
  }
  at::set_num_threads(threads);
}

TEST(FusedScan, TakesTensorsOfAnyStride) {
  const auto expected = outcome(Leaves(kAll), fused);
  const auto strided = [](const Tensor& x) {  // every other number
    return at::stack({x, x.logical_not().to(x.scalar_type())}, -1).select(-1, 0);
  };
  const auto view = [](const Tensor& x) {  // tokens apart
    return at::cat({x, x.logical_not().to(x.scalar_type())}, -1).slice(-1, 0, x.size(-1));
  };
  const auto turned = [](const Tensor& x) { return x.transpose(0, 1).contiguous().transpose(0, 1); };
  expect_equal(outcome(Leaves(kAll).mapped(strided, /*parameters=*/true), fused), expected, whole, "strided");
  expect_equal(outcome(Leaves(kAll).mapped(view), fused), expected, whole, "view");
  expect_equal(outcome(Leaves(kAll).mapped(turned), fused), expected, whole, "turned");
}

TEST(FusedScan, WithoutGradientsTheNumbersAreTheSame) {
  const Leaves leaves(kAll);
  const ScanOutput expected = fused(leaves.in);
  at::NoGradGuard no_grad;
  const ScanOutput got = fused(leaves.in);
  EXPECT_EQ(bit_difference(got.y, expected.y), "");
  EXPECT_EQ(bit_difference(got.h, expected.h), "");
}

/// A single decay of a state of ones is the exponential itself: to 1 ulp beside that of rounding its argument.
TEST(FusedScan, DecaysAreExactToRounding) {
  const int64_t D = 4000;
  const Tensor x = at::linspace(-86, 20, D);
  at::NoGradGuard no_grad;
  const Tensor h = fused({.u = at::zeros({1, 1, D}),
                          .delta = x.view({1, 1, D}),
                          .A = at::ones({D, 1}),
                          .B = at::ones({1, 1, 1, 1}),
                          .C = at::ones({1, 1, 1, 1}),
                          .h = at::ones({1, D, 1})})
                       .h.flatten()
                       .to(at::kDouble);
  const double ulp = std::pow(2.0, -23);
  const Tensor exact = x.to(at::kDouble).exp();
  const Tensor allowed = ulp * (1 + x.to(at::kDouble).abs());
  EXPECT_LE(((h / exact - 1).abs() / allowed).max().item<double>(), 1);
}

/// Decays whose products vanish or hardly move, and steps beyond exp's range: nothing overflows, nothing is NaN.
TEST(FusedScan, ExtremeStepsStayFinite) {
  for (const double step : {1e-8, 1e3, 1e20}) {
    Case c{.T = 300, .D = 5, .N = 3, .bias = false, .softplus = false};
    Leaves leaves(c), exact(c, at::kDouble, at::kDouble);
    for (Leaves* some : {&leaves, &exact}) {
      at::NoGradGuard no_grad;
      some->in.delta.fill_(step);
    }
    const auto expected = outcome(exact, reference), got = outcome(leaves, fused);
    for (size_t i = 0; i < got.size(); ++i) {
      const auto& [name, exact_value] = expected[i];
      if (exact_value.abs().max().item<double>() < 1e-37) {  // no number in float32
        EXPECT_EQ(got[i].second.abs().max().item<double>(), 0) << name << ", step " << step;
      } else {
        EXPECT_CLOSE_RMS(got[i].second, exact_value, i < 2 ? 1e-5 : 1e-4) << name << ", step " << step;
      }
    }
  }
}

/// A NaN in one document does not reach the next, nor its gradient the one before.
TEST(FusedScan, NaNStaysInItsDocument) {
  Case c{.B = 1, .T = 80};
  const auto run = [&](double first, double second) {
    Leaves leaves(c);
    leaves.in.starts = at::zeros({1, 80}, at::kBool);
    leaves.in.starts[0][37] = true;
    at::NoGradGuard no_grad;
    leaves.in.u[0][10].fill_(first);
    leaves.in.z[0][60].fill_(second);
    const at::AutoGradMode grad(true);
    return outcome(leaves, fused);
  };
  for (const auto& [name, x] : run(NAN, 0)) {
    if (name == "y") {
      EXPECT_TRUE(x.slice(1, 37).isfinite().all().item<bool>());
    }
    if (name == "h after") {
      EXPECT_TRUE(x.isfinite().all().item<bool>());
    }
  }
  for (const auto& [name, x] : run(0, NAN)) {
    if (name == "gradient of u") {
      EXPECT_TRUE(x.slice(1, 0, 37).isfinite().all().item<bool>());
    }
  }
}

TEST(FusedScan, NothingFallsBackSilently) {
  const Leaves leaves(kAll, at::kDouble, at::kDouble);
  const int64_t before = kernels::selective_scan.reference;
  kernels::use(kernels::selective_scan, reference, leaves.in);
  EXPECT_EQ(kernels::selective_scan.reference, before + 1);
  EXPECT_ERROR(fused(leaves.in), "selective_scan: no fused kernel");
  kernels::choose(kernels::Choice::automatic);
  const auto second_derivative = [&] {
    const Leaves single(kAll);
    torch::autograd::grad({fused(single.in).y.sum()}, {single.in.u}, {}, true, /*create_graph=*/true);
  };
  EXPECT_ERROR(second_derivative(), "no second derivative");
}

TEST(FusedScan, ErrorsNameTheTensor) {
  ScanInput in = Leaves(kAll).in;
  in.z = at::ones({5, 75, 1});
  EXPECT_ERROR(kernels::use(kernels::selective_scan, reference, in), "selective_scan: z is [5, 75, 1], expected [B=5");
  in.z = Tensor();
  in.B = in.C = at::ones({5, 75, 4, 13});
  EXPECT_ERROR(kernels::use(kernels::selective_scan, reference, in),
               "B has 4 groups, expected a divisor of the 66 channels");
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (int64_t T : {1, 7, 16, 63, 1000}) list.push_back({.T = T});
  for (int64_t N : {1, 2, 3, 5, 8, 15, 17, 64, 130}) list.push_back({.T = 45, .N = N});
  for (int64_t D : {1, 3, 15, 16, 17, 100, 300}) list.push_back({.T = 35, .D = D, .N = 6});
  for (int64_t G : {2, 3, 8, 24}) list.push_back({.T = 70, .G = G, .N = 7, .documents = true});
  list.push_back({.B = 1, .T = 33, .D = 2100, .N = 4});
  for (int i = 0; i < 5; ++i) {
    list.push_back({.T = 50, .skip = i == 1, .gate = i == 2, .bias = i == 3, .softplus = i == 4});
  }
  for (int64_t T : {1, 33, 200}) {
    list.push_back({.B = 3, .T = T, .D = 40, .N = 9, .documents = T > 1, .bfloat16 = true});
  }
  list.push_back({.B = 3, .T = 140, .D = 33, .documents = true});
  list.push_back({.B = 2, .T = 1100, .D = 40, .G = 2, .N = 5, .documents = true});  // several segments backward
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedScanShapes, testing::ValuesIn(cases()),
                         [](const auto& info) { return name(info.param); });

}  // namespace
}  // namespace lineal
