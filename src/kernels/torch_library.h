// How an operation becomes one of PyTorch's.
//
// Of each there is NAME_backward beside it, (gradients of the outputs, the inputs) -> gradients of the differentiable
// inputs, and both know the sizes of their results. A call on plain tensors goes to the kernel with its own autograd. A
// call that torch.compile or another mode watches is NAME, and in its backward pass NAME_backward, which computes anew
// what the kernel would have kept.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace lineal::kernels {

using at::Tensor;

/// What an operation of this name is called with and returns.
struct Signature {
  std::set<std::string> differentiable;  // arguments
  std::vector<std::string> like;         // the argument each output has the sizes and the type of; or made by `meta`
};

Tensor fresh_like(const Tensor& x);

/// Registers NAME and NAME_backward; arguments and results as in a schema. `meta` makes results without their numbers,
/// where `known` does not say how.
void add(torch::Library& library, const std::string& name, const std::string& arguments, const std::string& results,
         torch::CppFunction kernel, const Signature& known, std::optional<torch::CppFunction> meta = {});

template <class Kernel>
void add(torch::Library& library, const std::string& name, const std::string& arguments, const std::string& results,
         Kernel* kernel, const Signature& known, std::optional<torch::CppFunction> meta = {}) {
  add(library, name, arguments, results, torch::CppFunction(kernel), known, std::move(meta));
}

}  // namespace lineal::kernels
