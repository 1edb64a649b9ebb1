// Gradient checkpointing: keep a function's inputs, run it again in the backward pass. (Chen et al., 2016)
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace lineal {

using at::Tensor;
using TensorFunction = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

/// f(inputs), with nothing inside f kept for the backward pass but its inputs and the state of the random generator:
/// f runs again there. Gradients reach `inputs` and `parameters` (leaves that f uses); autocast is as it was. A tensor
/// that f returns must be of floating type or need no gradient.
std::vector<Tensor> recompute(TensorFunction f, const std::vector<Tensor>& inputs,
                              const std::vector<Tensor>& parameters);

}  // namespace lineal
