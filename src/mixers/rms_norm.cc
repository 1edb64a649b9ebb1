#include "mixers/rms_norm.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include "kernels/kernels.h"

namespace lineal {
namespace {

kernels::NormOutput reference(const kernels::NormInput& in) {
  const Tensor sum = in.added.defined() ? in.x + in.added : in.x;
  const Tensor y = at::rms_norm(sum, {sum.size(-1)}, in.weight, in.eps);
  return {in.narrow ? y.to(at::kBFloat16) : y, sum};
}

bool is_rounded(const Tensor& x) {
  const auto device = x.device().type();
  return x.scalar_type() == at::kFloat && at::autocast::is_autocast_enabled(device) &&
         at::autocast::get_autocast_dtype(device) == at::kBFloat16;
}

}  // namespace

kernels::NormOutput rms_norm(const kernels::NormInput& in) { return kernels::use(kernels::rms_norm, reference, in); }

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, bool narrow) {
  return rms_norm({x, {}, weight, eps, narrow}).y;
}

RmsNorm::RmsNorm(int64_t D, double eps) : eps_(eps) { weight = register_parameter("weight", at::ones({D})); }

Tensor RmsNorm::forward(const Tensor& x) const { return rms_norm(x, weight, eps_, is_rounded(x)); }

std::pair<Tensor, Tensor> RmsNorm::add(const Tensor& x, const Tensor& added) const {
  auto out = rms_norm({x, added, weight, eps_, is_rounded(x)});
  return {out.y, out.sum};
}

void RmsNorm::reset_parameters() {
  at::NoGradGuard no_grad;
  weight.fill_(1);
}

}  // namespace lineal
