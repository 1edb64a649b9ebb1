#include "mixers/norm.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "mixers/rms_norm.h"

namespace lineal {

LayerNorm::LayerNorm(int64_t D, double eps) : eps_(eps) {
  weight = register_parameter("weight", at::empty({D}));
  bias = register_parameter("bias", at::empty({D}));
}

Tensor LayerNorm::forward(const Tensor& x) const { return at::layer_norm(x, {x.size(-1)}, weight, bias, eps_); }

std::pair<Tensor, Tensor> LayerNorm::add(const Tensor& x, const Tensor& added) const {
  const Tensor sum = x + added;
  return {forward(sum), sum};
}

void LayerNorm::reset_parameters() {
  at::NoGradGuard no_grad;
  weight.fill_(1), bias.zero_();
}

std::vector<std::string> norm_names() { return {"rms", "layer"}; }

std::shared_ptr<Norm> make_norm(const std::string& name, int64_t D, double eps) {
  if (name == "rms") return std::make_shared<RmsNorm>(D, eps);
  if (name == "layer") return std::make_shared<LayerNorm>(D, eps);
  fail_unknown("model", "norm", name, norm_names());
}

}  // namespace lineal
