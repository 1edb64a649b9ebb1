// Memory for results.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/cpu/huge_pages.h"

namespace lineal::kernels {

/// `fresh` itself, on large pages if it is large: memory that a kernel is about to fill.
inline at::Tensor filled_by_kernel(const at::Tensor& fresh) {
  cpu::huge_pages(fresh.mutable_data_ptr(), static_cast<int64_t>(fresh.nbytes()));
  return fresh;
}

}  // namespace lineal::kernels
