// What the operations that can step a pool in place share.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/error.h"
#include "core/rows.h"
#include "kernels/cpu/state_part.h"

namespace lineal::kernels {

using at::Tensor;

/// Whether a kernel can step the rows of this part [P, ...]: each is contiguous, however far from the next.
inline bool has_rows(const Tensor& part) {
  int64_t step = 1;
  for (int64_t i = part.dim() - 1; i > 0; step *= part.size(i--)) {
    if (part.size(i) != 1 && part.stride(i) != step) return false;
  }
  return true;
}

/// From `before` to `after`, which are the same when rows are given; null where there are no numbers.
inline cpu::StatePart part(const Tensor& before, const Tensor& after, const Rows* rows) {
  if (!before.defined() || before.numel() == 0) return {};
  return {before.const_data_ptr<float>(), after.mutable_data_ptr<float>(), before.stride(0), after.stride(0),
          rows ? rows->data() : nullptr};
}

/// Throws unless an input with rows, of a pool whose parts are like this one, is a step of as many sequences, without
/// documents or gradients.
template <class Input>
void check_step(const char* who, const Input& in, const Tensor& part, int64_t B, int64_t T, bool differentiable) {
  if (!in.rows) return;
  if (part.size(0) != in.rows->capacity()) {
    fail(who, ": the pool holds ", part.size(0), " sequences, its rows were chosen of ", in.rows->capacity());
  }
  if (B != in.rows->count() || T != 1) {
    fail(who, ": [B, T] are ", B, " and ", T, ", expected ", in.rows->count(), " and 1 for as many rows of a pool");
  }
  if (in.starts.defined() || differentiable) {
    fail(who, ": rows of a pool step in place, expected no documents and gradients to be off");
  }
}

}  // namespace lineal::kernels
