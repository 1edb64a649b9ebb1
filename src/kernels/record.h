// Kernels by name, "lineal::rms_norm", for LibTorch's profilers and `lineal bench decode`.
#pragma once

#include <ATen/record_function.h>

#include <utility>

namespace lineal::kernels {

/// Runs a kernel, that alone, under this name.
template <class Kernel>
void record(const char* name, const Kernel& kernel) {
  RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>());
  kernel();
}

}  // namespace lineal::kernels
