// Raw form of the RMS norm kernel: rows of D contiguous numbers.
#pragma once

#include <cstdint>

namespace lineal::kernels::cpu {

/// s = x + added, or x; y = w s / sqrt(mean(s^2) + eps). `added` and y may be bfloat16, the rest is float32.
struct NormCall {
  int64_t rows, D;
  float eps;
  bool added_bfloat16, y_bfloat16;
  const float* x;
  const void* added;  // null: nothing is added
  const float* weight;

  static constexpr int64_t kPiece = 128;  // rows whose parts of the weight's gradient are summed in one go
  int64_t pieces() const { return (rows + kPiece - 1) / kPiece; }
};

struct NormResult {
  void* y;
  float* sum;   // s, or null when nothing is added
  float* rstd;  // [rows], or null
};

struct NormGradients {
  const void* y;             // dy, or null
  const float* sum_after;    // ds from elsewhere, or null
  const float *sum, *rstd;   // what forward gave
  float* x;                  // dx
  void* added;               // the same in bfloat16, or null
  float *weight, *partials;  // [D]; [pieces(), D], work space
};

void rms_norm_forward(const NormCall& call, const NormResult& result);
void rms_norm_backward(const NormCall& call, const NormGradients& gradients);

}  // namespace lineal::kernels::cpu
