// Tensors that are computed from a parameter alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

namespace lineal {

using at::Tensor;

/// f(parameter). With gradients off it is computed again only after the parameter has changed, in place or for other
/// memory, by LibTorch's count of its versions: what changes it uncounted must bump that. Not for several threads at
/// once.
class Derived {
 public:
  template <class F>
  Tensor operator()(const Tensor& parameter, const F& f) {
    if (at::GradMode::is_enabled()) return f(parameter);
    if (!value_.defined() || !parameter.is_alias_of(of_) || parameter.scalar_type() != of_.scalar_type() ||
        parameter._version() != version_) {
      value_ = f(parameter), of_ = parameter.detach(), version_ = parameter._version();
    }
    return value_;
  }

 private:
  Tensor value_, of_;
  int64_t version_ = 0;
};

}  // namespace lineal
