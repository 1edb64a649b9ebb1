// Linear maps, weights [out, in] as everywhere in the field.
#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

namespace lineal {

using at::Tensor;

/// y = x W^T + b. Unlike torch::nn::Linear it does not fill its parameters, which are drawn or loaded once, later.
class LinearMapImpl : public torch::nn::Module {
 public:
  LinearMapImpl(int64_t in, int64_t out, bool with_bias) {
    weight = register_parameter("weight", at::empty({out, in}));
    if (with_bias) bias = register_parameter("bias", at::empty({out}));
  }
  Tensor forward(const Tensor& x) const { return at::linear(x, weight, bias); }

  Tensor weight, bias;
};
TORCH_MODULE(LinearMap);

inline LinearMap linear(int64_t in, int64_t out, bool bias = false) { return LinearMap(in, out, bias); }

inline void reset_linear(LinearMap& map, double deviation) {
  at::NoGradGuard no_grad;
  map->weight.normal_(0, deviation);
}

}  // namespace lineal
