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
#include <type_traits>
#include <utility>
#include <vector>

namespace lineal::kernels {

using at::Tensor;

/// What an operation of this name is called with and returns.
struct Signature {
  std::set<std::string> differentiable;  // arguments
  std::vector<std::string> like;         // the argument each output has the sizes and the type of; or made by `meta`
  std::set<std::string> narrow;          // arguments that may be bfloat16, all of one type; the rest is float32
  bool any_type = false;                 // or all may be of any, on any device
};

/// What a kernel throws that is none for these arguments.
struct NoKernel {};

/// Throws what a user can do about it: of the operation, and the tensors of each of its arguments.
[[noreturn]] void fail_without_kernel(const std::string& name, const std::vector<std::vector<Tensor>>& given);

Tensor fresh_like(const Tensor& x);

/// The tensors of an argument: one, those of a list, or none.
template <class Argument>
std::vector<Tensor> tensors_of(const Argument& x) {
  if constexpr (std::is_same_v<Argument, Tensor>) {
    return {x};
  } else if constexpr (std::is_same_v<Argument, std::optional<Tensor>>) {
    return x ? std::vector{*x} : std::vector<Tensor>();
  } else if constexpr (std::is_same_v<Argument, at::TensorList>) {
    return x.vec();
  } else {
    return {};
  }
}

/// The kernel, with the error of an operation where it is none.
template <auto* kernel>
struct Explained;
template <class Result, class... Arguments, Result (*kernel)(Arguments...)>
struct Explained<kernel> {
  static inline const char* name = nullptr;  // no string, whose constructor could run after `add`

  static Result run(Arguments... arguments) {
    try {
      return kernel(arguments...);
    } catch (const NoKernel&) {
      fail_without_kernel(name, {tensors_of(arguments)...});
    }
  }
};

void add(torch::Library& library, const std::string& name, const std::string& arguments, const std::string& results,
         torch::CppFunction kernel, const Signature& known, std::optional<torch::CppFunction> meta);

/// Registers NAME and NAME_backward; arguments and results as in a schema. `meta` makes results without their numbers,
/// where `known` does not say how.
template <auto* kernel>
void add(torch::Library& library, const char* name, const std::string& arguments, const std::string& results,
         const Signature& known, std::optional<torch::CppFunction> meta = {}) {
  using Kernel = Explained<kernel>;
  Kernel::name = name;
  add(library, name, arguments, results, torch::CppFunction(&Kernel::run), known, std::move(meta));
}

}  // namespace lineal::kernels
