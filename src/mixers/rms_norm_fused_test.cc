// The fused RMS norm of a residual sum against LibTorch's in float64: results and every gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/rms_norm.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr double kEps = 1e-5;

struct Case {
  int64_t rows = 9, D = 24;
  bool adds = true, added_bfloat16 = false, narrow = false, y_used = true, sum_used = true;
};

std::string name(const Case& c) {
  return text("rows", c.rows, "_D", c.D, c.adds ? "" : "_alone", c.added_bfloat16 ? "_from_bfloat16" : "",
              c.narrow ? "_narrow" : "", c.y_used ? "" : "_sum_only", c.sum_used ? "" : "_y_only");
}

/// y, the sum, and the gradients of x, what is added (if anything is) and the weight; the types `wide` and, for what a
/// case has in bfloat16, `half`.
std::vector<Tensor> outcome(const Case& c, at::ScalarType wide, at::ScalarType half) {
  const auto rounded = [](const Tensor& x, bool narrow) { return narrow ? x.to(at::kBFloat16).to(at::kDouble) : x; };
  Tensor x = normal({c.rows, c.D}, 1).to(wide).requires_grad_(), added;
  const Tensor weight = (normal({c.D}, 3) * 0.3 + 1).to(wide).requires_grad_();
  std::vector<Tensor> leaves = {x};
  if (c.adds) {
    added = rounded(normal({c.rows, c.D}, 2), c.added_bfloat16).to(c.added_bfloat16 ? half : wide).requires_grad_();
    leaves.push_back(added);
  }
  leaves.push_back(weight);
  const auto reference = [](const kernels::NormInput& in) {
    const Tensor sum = in.added.defined() ? in.x + in.added : in.x;
    return kernels::NormOutput{at::rms_norm(sum, {sum.size(-1)}, in.weight, in.eps), sum};
  };
  kernels::choose(wide == at::kDouble ? kernels::Choice::reference : kernels::Choice::fused);
  const auto out = kernels::use(kernels::rms_norm, reference, {x, added, weight, kEps, c.narrow});
  kernels::choose(kernels::Choice::automatic);
  const auto weighted = [&](const Tensor& y, uint64_t seed) {
    return (y.to(wide) * normal(y.sizes(), seed).to(wide)).sum();
  };
  Tensor loss = at::zeros({}, wide);
  if (c.y_used) loss = loss + weighted(out.y, 10);
  if (c.sum_used) loss = loss + weighted(out.sum, 11);
  std::vector<Tensor> result = {out.y, out.sum};
  for (const Tensor& gradient : torch::autograd::grad({loss}, leaves, {}, {}, false, /*allow_unused=*/true)) {
    result.push_back(gradient.defined() ? gradient : at::zeros_like(weight));
  }
  return result;
}

class FusedRmsNorm : public testing::TestWithParam<Case> {};

TEST_P(FusedRmsNorm, IsTheReference) {
  const Case& c = GetParam();
  const auto got = outcome(c, at::kFloat, at::kBFloat16), expected = outcome(c, at::kDouble, at::kDouble);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(i);
    if (expected[i].count_nonzero().item<int64_t>() == 0) {
      EXPECT_EQ(got[i].count_nonzero().item<int64_t>(), 0);
      continue;
    }
    const bool half = got[i].scalar_type() == at::kBFloat16;
    // What reaches the kernel of y's gradient was rounded as y was.
    const double gradients = half || c.narrow ? 8e-3 : 1e-4;
    EXPECT_CLOSE_RMS(got[i].to(at::kDouble), expected[i], i < 2 ? (half ? 5e-3 : 1e-5) : gradients);
  }
}

TEST(FusedRmsNormOfRows, DependsNeitherOnThreadsNorOnOtherRows) {
  const int threads = at::get_num_threads();
  const Case c{.rows = 5 * 128 + 3, .D = 33};
  at::set_num_threads(1);
  const auto alone = outcome(c, at::kFloat, at::kFloat);
  for (const int count : {2, 3}) {
    at::set_num_threads(count);
    const auto shared = outcome(c, at::kFloat, at::kFloat);
    for (size_t i = 0; i < alone.size(); ++i) EXPECT_EQ(bit_difference(shared[i], alone[i]), "") << i;
  }
  at::set_num_threads(threads);
  const Tensor x = normal({7, 33}, 1).to(at::kFloat);
  const RmsNorm norm(33, kEps);
  at::NoGradGuard no_grad;
  EXPECT_EQ(bit_difference(norm.forward(x).slice(0, 2, 4), norm.forward(x.slice(0, 2, 4))), "");
}

TEST(FusedRmsNormOfRows, NarrowsUnderAutocastAlone) {
  const RmsNorm norm(8, kEps);
  const Tensor x = normal({3, 8}, 1).to(at::kFloat);
  EXPECT_EQ(norm.forward(x).scalar_type(), at::kFloat);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const auto [y, sum] = norm.add(x, x);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_EQ(sum.scalar_type(), at::kFloat);
}

TEST(FusedRmsNormOfRows, RefusesOtherSizes) {
  const Tensor x = at::ones({2, 8});
  EXPECT_ERROR(RmsNorm(9, kEps).forward(x), "weight [9]");
  EXPECT_ERROR(RmsNorm(8, kEps).add(x, at::ones({1, 8})), "expected the same sizes");
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (int64_t rows : {1, 127, 129, 300}) list.push_back({.rows = rows});
  for (int64_t D : {1, 5, 16, 31, 256, 1000}) list.push_back({.D = D});
  list.push_back({.D = 17, .adds = false});
  list.push_back({.D = 17, .adds = false, .narrow = true});
  list.push_back({.D = 40, .added_bfloat16 = true});
  list.push_back({.D = 41, .added_bfloat16 = true, .narrow = true});
  list.push_back({.narrow = true});
  list.push_back({.y_used = false});
  list.push_back({.sum_used = false});
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedRmsNorm, testing::ValuesIn(cases()),
                         [](const auto& info) { return name(info.param); });

}  // namespace
}  // namespace lineal
