// A part of the state as the kernels of one token see it: from one tensor to another, or rows of a pool in place.
#pragma once

#include <cstdint>

namespace lineal::kernels::cpu {

/// [P, ...] float32, contiguous but for the distance between rows, which counts in numbers.
struct StatePart {
  const float* from = nullptr;
  float* to = nullptr;  // `from`, when the step is in place
  int64_t from_row = 0, to_row = 0;
  const int64_t* rows = nullptr;  // [B], or null: row b is sequence b

  const float* before(int64_t b) const { return from + (rows ? rows[b] : b) * from_row; }
  float* after(int64_t b) const { return to + (rows ? rows[b] : b) * to_row; }
  explicit operator bool() const { return from != nullptr; }
};

}  // namespace lineal::kernels::cpu
