// Linear maps without bias, weights [out, in] as everywhere in the field.
#pragma once

#include <torch/nn/modules/linear.h>

namespace lineal {

inline torch::nn::Linear linear(int64_t in, int64_t out) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
}

inline void reset_linear(torch::nn::Linear& map, double deviation) {
  at::NoGradGuard no_grad;
  map->weight.normal_(0, deviation);
}

}  // namespace lineal
