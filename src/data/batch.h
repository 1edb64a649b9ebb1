// What an objective sees of the data.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/segments.h"

namespace lineal {

struct Batch {
  Tensor inputs;      // int64 [B, T]
  Tensor targets;     // int64 [B, T]
  Tensor mask;        // float32 [B, T], 1 where the loss counts
  Segments segments;  // documents of inputs

  int64_t size() const { return inputs.size(0); }
  int64_t length() const { return inputs.size(1); }
  /// Tokens [from, to) of every row.
  Batch slice(int64_t from, int64_t to) const {
    return {inputs.slice(1, from, to), targets.slice(1, from, to), mask.slice(1, from, to), segments.slice(from, to)};
  }
};

}  // namespace lineal
