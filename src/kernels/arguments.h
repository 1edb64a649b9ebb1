// What a kernel asks of the arguments that are no numbers: flags, places, counts.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace lineal::kernels {

using at::Tensor;

/// Throws unless x is undefined or on the CPU and of this type.
inline void check_type(const char* who, const Tensor& x, at::ScalarType type, const char* name) {
  if (!x.defined() || (x.is_cpu() && x.scalar_type() == type)) return;
  fail(who, ": ", name, " is ", c10::toString(x.scalar_type()), " on ", x.device(), ", expected ", c10::toString(type),
       " on the CPU");
}

/// Throws unless x is int64 on the CPU, and every number from 0 to `most`.
inline void check_range(const char* who, const Tensor& x, int64_t most, const char* name) {
  check_type(who, x, at::kLong, name);
  const Tensor all = x.contiguous();
  const int64_t* begin = all.const_data_ptr<int64_t>();
  const int64_t* bad = std::find_if(begin, begin + all.numel(), [&](int64_t n) { return n < 0 || n > most; });
  if (bad == begin + all.numel()) return;
  const bool open = most == std::numeric_limits<int64_t>::max();
  fail(who, ": ", name, " has ", *bad, ", expected ", open ? "at least 0" : text("0 to ", most));
}
inline void check_at_least_0(const char* who, const Tensor& x, const char* name) {
  check_range(who, x, std::numeric_limits<int64_t>::max(), name);
}

}  // namespace lineal::kernels
