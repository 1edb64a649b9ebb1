// Raw form of RWKV-4's recurrence: pointers to tensors, one call for all rows and channels.
#pragma once

#include <cstdint>

#include "kernels/cpu/state_part.h"

namespace lineal::kernels::cpu {

/// One call; formulas and letters in wkv.cc.
struct WkvCall {
  int64_t B, T, A;
  const float *k, *v;  // [B, T, A]
  const float *w, *u;  // [A]
  const bool* starts;  // [B, T], or null
  float least;         // p where a document starts
};

struct WkvState {
  StatePart a, b, p;  // [P, A]
};

struct WkvGradients {
  const float *y, *a_after, *b_after, *p_after;  // of the results
  float *k, *v, *a, *b, *p;                      // of the inputs
  float *w_row, *u_row;                          // [B, A], a row's share
};

/// y [B, T, A].
void wkv_forward(const WkvCall& call, const WkvState& state, float* y);
/// The state's `before` is that of the call.
void wkv_backward(const WkvCall& call, const WkvState& state, const WkvGradients& gradients);

}  // namespace lineal::kernels::cpu
