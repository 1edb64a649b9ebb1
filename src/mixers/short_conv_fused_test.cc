// The fused short convolution against its reference in float64: outputs, window, every gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <random>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/short_conv.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using kernels::ConvInput;
using kernels::ConvOutput;

struct Case {
  int64_t B = 2, T = 40, D = 24, J = 4;
  bool silu = true, documents = false, bfloat16 = false;
};

std::string name(const Case& c) {
  return text("B", c.B, "_T", c.T, "_D", c.D, "_J", c.J, c.silu ? "_silu" : "", c.documents ? "_documents" : "",
              c.bfloat16 ? "_bfloat16" : "");
}

constexpr Tensor ConvInput::*kLeaves[] = {&ConvInput::x, &ConvInput::weight, &ConvInput::bias, &ConvInput::window};
constexpr const char* kNames[] = {
    "y", "window after", "gradient of x", "gradient of weight", "gradient of bias", "gradient of window"};

/// With `bfloat16` x and the window are rounded to it, whatever type they are kept in.
ConvInput input(const Case& c, at::ScalarType tokens, at::ScalarType parameters) {
  const auto rounded = [&](const Tensor& x) { return c.bfloat16 ? x.to(at::kBFloat16) : x; };
  ConvInput in;
  in.x = rounded(normal({c.B, c.T, c.D}, 1)).to(tokens);
  in.weight = normal({c.D, 1, c.J}, 2).to(parameters);
  in.bias = normal({c.D}, 3).to(parameters);
  in.window = rounded(normal({c.B, c.J - 1, c.D}, 4)).to(parameters);
  for (auto member : kLeaves) (in.*member).requires_grad_();
  in.silu = c.silu;
  if (c.documents) {
    in.starts = at::zeros({c.B, c.T}, at::kBool);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t t = 3 * b; t < c.T; t += 11 + 40 * b) in.starts[b][t] = true;
      if (c.T > 130) in.starts[b].slice(0, 127, 130).fill_(true);  // about a task's end
    }
  }
  return in;
}
ConvInput input(const Case& c) { return input(c, c.bfloat16 ? at::kBFloat16 : at::kFloat, at::kFloat); }

/// The same with f applied to what has rows, and to the parameters as well.
ConvInput mapped(ConvInput in, const std::function<Tensor(const Tensor&)>& f, bool parameters = false) {
  if (in.starts.defined()) in.starts = f(in.starts);
  for (auto member : kLeaves) {
    const bool has_rows = member == &ConvInput::x || member == &ConvInput::window;
    const Tensor x = (in.*member).detach();
    in.*member = (has_rows || parameters ? f(x) : x.clone()).requires_grad_();
  }
  return in;
}

ConvOutput fused(const ConvInput& in) {
  kernels::choose(kernels::Choice::fused);
  auto out = kernels::use(kernels::short_conv, short_conv_reference, in);
  kernels::choose(kernels::Choice::automatic);
  return out;
}

/// Results and gradients through both of them, in the order of kNames.
std::vector<Tensor> outcome(const ConvInput& in, ConvOutput (*f)(const ConvInput&)) {
  const ConvOutput out = f(in);
  const auto weights = [](const Tensor& x, uint64_t seed) {  // the same for a row in any batch
    return normal(x.sizes().slice(1), seed).to(at::kBFloat16).to(x.scalar_type());
  };
  const Tensor loss =
      (out.y * weights(out.y, 100)).sum(at::kDouble) + (out.window * weights(out.window, 101)).sum(at::kDouble);
  std::vector<Tensor> leaves, result = {out.y, out.window};
  for (auto member : kLeaves) leaves.push_back(in.*member);
  for (const Tensor& gradient : torch::autograd::grad({loss}, leaves)) result.push_back(gradient);
  return result;
}

void expect_reference(const Case& c) {
  const auto expected = outcome(input(c, at::kDouble, at::kDouble), short_conv_reference);
  const auto got = outcome(input(c), fused);
  for (size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE(name(c) + ": " + kNames[i]);
    EXPECT_CLOSE_RMS(got[i], expected[i], c.bfloat16 ? (i < 2 ? 5e-3 : 8e-3) : (i < 2 ? 1e-5 : 1e-4));
  }
}

void expect_equal(const std::vector<Tensor>& got, const std::vector<Tensor>& expected, const std::string& what) {
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(bit_difference(got[i], expected[i]), "") << kNames[i] << what;
}

class FusedConvShapes : public testing::TestWithParam<Case> {};

TEST_P(FusedConvShapes, IsTheReference) { expect_reference(GetParam()); }

TEST(FusedConv, RandomShapes) {
  std::mt19937 random(20231202);
  const auto up_to = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)) + 1; };
  for (int i = 0; i < 80; ++i) {
    Case c{.B = up_to(3), .T = up_to(300), .D = up_to(150), .J = i % 5 == 0 ? up_to(64) : up_to(6)};
    for (bool* flag : {&c.silu, &c.documents}) *flag = random() % 2 == 0;
    c.bfloat16 = i % 4 == 0 && c.B * c.T * c.D > 500;  // of few numbers the rounding errors' mean square is a lottery
    expect_reference(c);
  }
}

const Case kAll{.B = 5, .T = 300, .D = 70, .J = 5, .documents = true};

/// The gradients of weight and bias are sums over the batch: equal for any threads, not for other rows.
TEST(FusedConv, ARowDoesNotDependOnItsBatchNorOnThreads) {
  const int threads = at::get_num_threads();
  for (const bool bfloat16 : {false, true}) {
    Case c = kAll;
    c.bfloat16 = bfloat16;
    at::set_num_threads(1);
    const auto together = outcome(input(c), fused);
    for (const int count : {1, 2, 3}) {
      at::set_num_threads(count);
      expect_equal(outcome(input(c), fused), together, text(", ", count, " threads"));
      for (const std::vector<int64_t>& index : {std::vector<int64_t>{3}, {1, 4}}) {
        const auto picked = [&](const Tensor& x) { return x.index_select(0, at::tensor(index, at::kLong)); };
        const auto some = outcome(mapped(input(c), picked), fused);
        for (const size_t i : {0, 1, 2, 5}) {
          EXPECT_EQ(bit_difference(some[i], picked(together[i])), "") << kNames[i] << ", " << count << " threads";
        }
      }
    }
  }
  at::set_num_threads(threads);
}

TEST(FusedConv, TakesTensorsOfAnyStride) {
  const auto expected = outcome(input(kAll), fused);
  const auto strided = [](const Tensor& x) {  // every other number
    return at::stack({x, x.logical_not().to(x.scalar_type())}, -1).select(-1, 0);
  };
  const auto view = [](const Tensor& x) {  // tokens apart
    return at::cat({x, x.logical_not().to(x.scalar_type())}, -1).slice(-1, 0, x.size(-1));
  };
  const auto turned = [](const Tensor& x) { return x.transpose(0, 1).contiguous().transpose(0, 1); };
  expect_equal(outcome(mapped(input(kAll), strided, /*parameters=*/true), fused), expected, ", strided");
  expect_equal(outcome(mapped(input(kAll), view), fused), expected, ", view");
  expect_equal(outcome(mapped(input(kAll), turned), fused), expected, ", turned");
}

TEST(FusedConv, WithoutGradientsTheNumbersAreTheSame) {
  const ConvInput in = input(kAll);
  const ConvOutput expected = fused(in);
  at::NoGradGuard no_grad;
  const ConvOutput got = fused(in);
  EXPECT_EQ(bit_difference(got.y, expected.y), "");
  EXPECT_EQ(bit_difference(got.window, expected.window), "");
}

TEST(FusedConv, NothingFallsBackSilently) {
  const ConvInput in = input(kAll, at::kDouble, at::kDouble);
  const int64_t before = kernels::short_conv.reference;
  kernels::use(kernels::short_conv, short_conv_reference, in);
  EXPECT_EQ(kernels::short_conv.reference, before + 1);
  EXPECT_ERROR(fused(in), "short_conv: no fused kernel");
  kernels::choose(kernels::Choice::automatic);
  const auto second_derivative = [&] {
    const ConvInput single = input(kAll);
    torch::autograd::grad({fused(single).y.sum()}, {single.x}, {}, true, /*create_graph=*/true);
  };
  EXPECT_ERROR(second_derivative(), "no second derivative");
}

TEST(FusedConv, ErrorsNameTheTensor) {
  ConvInput in = input(kAll);
  in.window = at::ones({5, 3, 70});
  EXPECT_ERROR(kernels::use(kernels::short_conv, short_conv_reference, in),
               "short_conv: window is [5, 3, 70], expected [B=5, J-1=4, D=70]");
  in.weight = at::ones({70, 2, 5});
  EXPECT_ERROR(kernels::use(kernels::short_conv, short_conv_reference, in), "short_conv: weight is [70, 2, 5]");
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (int64_t T : {1, 2, 7, 16, 63, 128, 129, 1000}) list.push_back({.T = T});
  for (int64_t J : {1, 2, 3, 5, 8, 31, 64}) {
    for (int64_t T : {1, 5, 300}) list.push_back({.T = T, .D = 20, .J = J, .documents = T == 300});
  }
  for (int64_t D : {1, 15, 16, 17, 64, 65, 300})
    list.push_back({.T = 35, .D = D, .silu = false, .documents = D % 2 == 0});
  for (int64_t T : {1, 33, 200}) list.push_back({.B = 3, .T = T, .D = 40, .documents = T > 1, .bfloat16 = true});
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedConvShapes, testing::ValuesIn(cases()),
                         [](const auto& info) { return name(info.param); });

}  // namespace
}  // namespace lineal
