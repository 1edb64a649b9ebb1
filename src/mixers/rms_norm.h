// RMS norm: y = w * x / sqrt(mean(x^2) + eps) over the last dimension.   (Root Mean Square Layer Normalization, 2019,
// eq. 4)
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/nn/module.h>

#include "kernels/kernels.h"

namespace lineal {

using at::Tensor;

class RmsNorm : public torch::nn::Module {
 public:
  RmsNorm(int64_t D, double eps) : eps_(eps) { weight = register_parameter("weight", at::ones({D})); }
  Tensor forward(const Tensor& x) const { return normed(x, {}).y; }
  /// x + added, and its norm.
  kernels::NormOutput add(const Tensor& x, const Tensor& added) const { return normed(x, added); }

  void reset_parameters() {
    at::NoGradGuard no_grad;
    weight.fill_(1);
  }

  Tensor weight;

 private:
  /// What autocast would round on its way into a matrix product is written in bfloat16.
  kernels::NormOutput normed(const Tensor& x, const Tensor& added) const {
    const auto device = x.device().type();
    const bool narrow = x.scalar_type() == at::kFloat && at::autocast::is_autocast_enabled(device) &&
                        at::autocast::get_autocast_dtype(device) == at::kBFloat16;
    const auto reference = [](const kernels::NormInput& in) {
      const Tensor sum = in.added.defined() ? in.x + in.added : in.x;
      const Tensor y = at::rms_norm(sum, {sum.size(-1)}, in.weight, in.eps);
      return kernels::NormOutput{in.narrow ? y.to(at::kBFloat16) : y, sum};
    };
    return kernels::use(kernels::rms_norm, reference, {x, added, weight, eps_, narrow});
  }

  double eps_;
};

}  // namespace lineal
