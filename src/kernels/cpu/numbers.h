// Tensors as kernels see them that take more than one type of number, and rows that do not touch.
#pragma once

#include <cstdint>

namespace lineal::kernels::cpu {

/// The upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

/// [B, T, n] of float or BFloat16: tokens of n contiguous numbers, steps apart that count in numbers. Null: absent.
struct TokenRows {
  const void* data = nullptr;
  int64_t row = 0, token = 0;

  template <class Number>
  const Number* at(int64_t b, int64_t t) const {
    return static_cast<const Number*>(data) + b * row + t * token;
  }
};

}  // namespace lineal::kernels::cpu
