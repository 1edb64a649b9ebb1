// Raw form of the short convolution: pointers to tensors, one call for all rows and channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/state_part.h"

namespace lineal::kernels::cpu {

/// One call; formulas and letters in short_conv.cc. Numbers of x and y and of their gradients are all float or all
/// BFloat16.
struct ConvCall {
  int64_t B, T, D, J;
  bool bfloat16, silu;
  TokenRows x;          // [B, T, D]
  const float* weight;  // [D, J]
  const float* bias;    // [D]
  const float* window;  // [B, J-1, D], before the call
  const bool* starts;   // [B, T], or null

  // A task is some tokens of some channels of a row. The cut depends on no thread count: gradients of the weights are
  // summed task after task.
  static constexpr int64_t kChannels = 64;
  int64_t chunk() const { return std::min(T, std::max<int64_t>(128, 4 * J)); }
  int64_t chunks() const { return (T + chunk() - 1) / chunk(); }
  int64_t blocks() const { return (D + kChannels - 1) / kChannels; }
  int64_t tasks() const { return B * chunks() * blocks(); }
  /// Partial sums of the gradients of weight and bias, for each task.
  int64_t partial_size() const { return (J + 1) * kChannels; }
};

struct ConvResult {
  void* y;        // [B, T, D]
  float* window;  // [B, J-1, D], after the call
};

/// Gradients of the results, and of the inputs.
struct ConvGradients {
  TokenRows y;
  const float* window_after;
  void* x;                        // [B, T, D]
  float *weight, *bias, *window;  // as the inputs
  float* partials;                // [tasks(), partial_size()], work space
};

void short_conv_forward(const ConvCall& call, const ConvResult& result);
/// Forward of one token a row: window [P, J-1, D] moves on by it, y [B, 1, D].
void short_conv_step(const ConvCall& call, const StatePart& window, void* y);
void short_conv_backward(const ConvCall& call, const ConvGradients& gradients);

}  // namespace lineal::kernels::cpu
