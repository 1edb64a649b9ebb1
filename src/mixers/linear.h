// Linear maps, weights [out, in] as everywhere in the field.
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "mixers/derived.h"

namespace lineal {

using at::Tensor;

/// y = x W^T + b. Unlike torch::nn::Linear it does not fill its parameters, which are drawn or loaded once, later.
class LinearMapImpl : public torch::nn::Module {
 public:
  LinearMapImpl(int64_t in, int64_t out, bool with_bias) {
    weight = register_parameter("weight", at::empty({out, in}));
    if (with_bias) bias = register_parameter("bias", at::empty({out}));
  }
  Tensor forward(const Tensor& x) const {
    const bool plain = !at::GradMode::is_enabled() && !bias.defined() && x.dim() == 3 && x.is_contiguous() &&
                       !at::autocast::is_autocast_enabled(x.device().type());
    if (!plain) return at::linear(x, weight, bias);
    // The same without its checks and views, which cost a decoding step as much as the product of a small layer.
    const Tensor transposed = transposed_(weight, [](const Tensor& W) { return W.t(); });
    return at::mm(x.view({-1, x.size(2)}), transposed).view({x.size(0), x.size(1), weight.size(0)});
  }

  Tensor weight, bias;

 private:
  mutable Derived transposed_;
};
TORCH_MODULE(LinearMap);

inline LinearMap linear(int64_t in, int64_t out, bool bias = false) { return LinearMap(in, out, bias); }

inline void reset_linear(LinearMap& map, double deviation) {
  at::NoGradGuard no_grad;
  map->weight.normal_(0, deviation);
  if (map->bias.defined()) map->bias.zero_();
}

}  // namespace lineal
