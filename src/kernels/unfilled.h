// Memory for results.
#pragma once

#include <ATen/core/Tensor.h>

namespace lineal::kernels {

/// A tensor that a kernel is about to fill, with anything in it. A large one lies on large pages where the system has
/// them, and its memory waits for the next of its size: pages that have to be cleared first cost an operation a tenth
/// of its time, small ones a third. What none of the next thousand takes goes back to the system, and what is more than
/// large results ever had at once. Not where LibTorch's allocator is not its own.
at::Tensor unfilled(at::IntArrayRef sizes, const at::TensorOptions& options);

inline at::Tensor unfilled_like(const at::Tensor& x, const at::TensorOptions& options) {
  return unfilled(x.sizes(), options);
}
inline at::Tensor unfilled_like(const at::Tensor& x) { return unfilled(x.sizes(), x.options()); }

/// All memory that waits goes back to the system now.
void empty_cache();

}  // namespace lineal::kernels
