// The recurrence of RWKV-4.
#pragma once

#include "kernels/kernels.h"

namespace lineal::kernels {

/// What the recurrence reads; formulas and letters in mixers/rwkv4.cc. All float32.
struct WkvInput {
  Tensor k, v;     // [B, T, A]
  Tensor w, u;     // [A], the logarithm of the decay and the bonus of the token itself
  Tensor a, b, p;  // [B, A], numerator, denominator and their exponent
  Tensor starts;   // bool [B, T], where documents start, or undefined
  const Rows* rows = nullptr;

  std::vector<Tensor*> state() { return {&a, &b, &p}; }
};

struct WkvOutput {
  Tensor y;        // [B, T, A]
  Tensor a, b, p;  // after the last token

  std::vector<Tensor*> state() { return {&a, &b, &p}; }
};

extern const Operation<WkvOutput, WkvInput> wkv;

/// p before the first token: every exponent is larger.
constexpr double kWkvLeast = -1e38;

}  // namespace lineal::kernels
