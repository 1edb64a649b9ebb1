// The fused gate of SwiGLU against its formula in float64.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/kernels.h"
#include "testing/testing.h"

namespace lineal {
namespace {

/// silu(gate) * up and the gradients of both.
std::vector<Tensor> outcome(const Tensor& gate, const Tensor& up, bool fused) {
  const Tensor a = gate.detach().requires_grad_(), b = up.detach().requires_grad_();
  kernels::choose(fused ? kernels::Choice::fused : kernels::Choice::reference);
  const Tensor y = kernels::use(
      kernels::swiglu, [](const Tensor& g, const Tensor& u) { return at::silu(g) * u; }, a, b);
  kernels::choose(kernels::Choice::automatic);
  const auto gradients = torch::autograd::grad({(y * normal(y.sizes(), 9).to(y.scalar_type())).sum()}, {a, b});
  return {y, gradients[0], gradients[1]};
}

class FusedSwiglu : public testing::TestWithParam<std::vector<int64_t>> {};

TEST_P(FusedSwiglu, IsTheReference) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Tensor gate = (normal(GetParam(), 1) * 4).to(type), up = normal(GetParam(), 2).to(type);
    const auto got = outcome(gate, up, true);
    const auto expected = outcome(gate.to(at::kDouble), up.to(at::kDouble), false);
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(i);
      ASSERT_EQ(got[i].scalar_type(), type);
      const double most = type == at::kFloat ? (i == 0 ? 1e-5 : 1e-4) : (i == 0 ? 5e-3 : 8e-3);
      EXPECT_CLOSE_RMS(got[i].to(at::kDouble), expected[i], most);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedSwiglu,
                         testing::Values(std::vector<int64_t>{1}, std::vector<int64_t>{3, 5},
                                         std::vector<int64_t>{2, 7, 31}, std::vector<int64_t>{3, 4096},
                                         std::vector<int64_t>{5, 1000, 3}));

TEST(FusedSwigluValues, AreFiniteAtExtremes) {
  const Tensor gate = at::tensor({-1e30, -200.0, -89.0, -0.0, 0.0, 89.0, 200.0, 1e30}).to(at::kFloat);
  const auto got = outcome(gate, at::full_like(gate, 0.5), true);
  const auto expected = outcome(gate.to(at::kDouble), at::full_like(gate, 0.5).to(at::kDouble), false);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(got[i].isfinite().all().item<bool>()) << i << ": " << got[i];
    EXPECT_CLOSE(got[i].to(at::kDouble), expected[i], 1e-6);
  }
}

TEST(FusedSwigluValues, TakeAnyStrideAndAnyNumberOfThreads) {
  const Tensor both = normal({40, 700}, 3).to(at::kFloat), gate = both.slice(1, 0, 350), up = both.slice(1, 350);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto expected = outcome(gate.contiguous(), up.contiguous(), true);
  at::set_num_threads(3);
  const auto got = outcome(gate, up, true);
  at::set_num_threads(threads);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(bit_difference(got[i], expected[i]), "") << i;
  EXPECT_ERROR(outcome(gate, up.slice(1, 1), true), "expected the same sizes");
}

}  // namespace
}  // namespace lineal
