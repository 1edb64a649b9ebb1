// Raw form of the SwiGLU kernel: silu(a) b, element by element.
#pragma once

#include <cstdint>

namespace lineal::kernels::cpu {

/// Contiguous, float32 or all bfloat16.
struct SwigluCall {
  int64_t n;
  bool bfloat16;
  const void *a, *b;
};

void swiglu_forward(const SwigluCall& call, void* y);
/// From dy: da and db.
void swiglu_backward(const SwigluCall& call, const void* dy, void* da, void* db);

}  // namespace lineal::kernels::cpu
