// RMS norm: y = w * x / sqrt(mean(x^2) + eps) over the last dimension.   (Root Mean Square Layer Normalization, 2019,
// eq. 4)
#pragma once

#include "kernels/kernels.h"
#include "mixers/norm.h"

namespace lineal {

/// x [..., D], weight [D] -> [..., D], in bfloat16 if `narrow`.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, bool narrow = false);
/// `kernels::rms_norm`, or its reference.
kernels::NormOutput rms_norm(const kernels::NormInput& in);

/// Under bfloat16 autocast the norm is rounded to bfloat16, as it would be on its way into a matrix product.
class RmsNorm : public Norm {
 public:
  RmsNorm(int64_t D, double eps);
  Tensor forward(const Tensor& x) const override;
  std::pair<Tensor, Tensor> add(const Tensor& x, const Tensor& added) const override;
  void reset_parameters() override;

  Tensor weight;

 private:
  double eps_;
};

}  // namespace lineal
