// What the backward pass of a kernel asks of its call.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <vector>

#include "core/error.h"

namespace lineal::kernels {

/// Throws if the pass is to be differentiated itself.
inline void check_first_derivative(const char* who) {
  if (!at::GradMode::is_enabled()) return;
  fail(who, ": the fused kernel has no second derivative; models and layers have one under --kernels reference, ",
       "in Python lineal.kernels(\"reference\")");
}

/// The same, and if the gradients of several passes come as one: such tensors have no memory.
inline void check_backward(const char* who, const std::vector<at::Tensor>& gradients) {
  check_first_derivative(who);
  const c10::DispatchKeySet batched({c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched});
  for (const at::Tensor& x : gradients) {
    if (!x.defined() || !x.key_set().has_any(batched)) continue;
    fail(who, ": the gradients are a batch of them (is_grads_batched, vectorize, torch.vmap), expected one; ",
         "call backward for each");
  }
}

}  // namespace lineal::kernels
