// RMS norm: y = w * x / sqrt(mean(x^2) + eps) over the last dimension.   (Root Mean Square Layer Normalization, 2019,
// eq. 4)
#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>

namespace lineal {

using at::Tensor;

class RmsNorm : public torch::nn::Module {
 public:
  RmsNorm(int64_t D, double eps) : eps_(eps) { weight = register_parameter("weight", at::ones({D})); }
  Tensor forward(const Tensor& x) const { return at::rms_norm(x, {x.size(-1)}, weight, eps_); }

  void reset_parameters() {
    at::NoGradGuard no_grad;
    weight.fill_(1);
  }

  Tensor weight;

 private:
  double eps_;
};

}  // namespace lineal
