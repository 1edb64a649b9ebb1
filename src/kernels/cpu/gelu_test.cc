// TTT-MLP's gelu against LibTorch's in float64, and at the extremes.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/ttt.h"
#include "testing/testing.h"

namespace lineal {
namespace {

std::vector<Tensor> ours(const Tensor& x) {
  std::vector<Tensor> results(3);
  for (Tensor& y : results) y = at::empty_like(x);
  kernels::cpu::gelu(x.const_data_ptr<float>(), x.numel(), results[0].mutable_data_ptr<float>(),
                     results[1].mutable_data_ptr<float>(), results[2].mutable_data_ptr<float>());
  return results;
}

TEST(Gelu, IsThatOfFloat64ToRounding) {
  const Tensor x = at::cat({at::linspace(-14, 14, 100003), normal({5000}, 1) * 1e-3});
  const Tensor wide = x.to(at::kDouble).requires_grad_();
  const Tensor value = at::gelu(wide, "tanh");
  const Tensor slope = torch::autograd::grad({value.sum()}, {wide}, {}, true, /*create_graph=*/true)[0];
  const Tensor curvature = torch::autograd::grad({slope.sum()}, {wide})[0];
  const auto got = ours(x);
  const double unit = std::ldexp(1, -24);  // of the last place, near 1
  EXPECT_LT((got[0] - value).abs().div(wide.abs()).max().item<double>(), 3 * unit);
  EXPECT_LT((got[1] - slope).abs().max().item<double>(), 5 * unit);
  EXPECT_LT((got[2] - curvature).abs().max().item<double>(), 6 * unit);
}

TEST(Gelu, IsFiniteAtTheExtremesAndHidesNoNaN) {
  const float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  const Tensor x = at::tensor({most, 1e20f, 30.0f, least, 0.0f, -least, -30.0f, -1e20f, -most});
  const auto got = ours(x);
  const Tensor slopes = at::tensor({1., 1., 1., .5, .5, .5, 0., 0., 0.});
  EXPECT_EQ(bit_difference(got[0].slice(0, 0, 3), x.slice(0, 0, 3)), "");
  EXPECT_LT(got[0].slice(0, 3).abs().max().item<float>(), 1e-26);
  EXPECT_LT((got[1] - slopes).abs().max().item<float>(), 1e-6);
  EXPECT_LT(at::cat({got[2].slice(0, 0, 3), got[2].slice(0, 6)}).abs().max().item<float>(), 1e-24);
  for (const Tensor& y : ours(at::full({1}, NAN))) EXPECT_TRUE(std::isnan(y.item<float>()));
}

}  // namespace
}  // namespace lineal
