// The operations of attention over quantised keys.
#pragma once

#include "kernels/kernels.h"

namespace lineal::kernels {

/// The nearest codeword of each key: k [B, T, H, K], codebook [H, M, K] -> int64 [B, T, H], the first of those equally
/// near. Without gradients.
extern const Operation<Tensor, Tensor, Tensor> nearest_code;

/// What attention over quantised keys reads; formulas and letters in mixers/vq_attention.cc.
struct VqInput {
  Tensor q, p;      // [B, T, H, K], what meets a key's codeword and what its distance; scale and biases included
  Tensor k;         // [B, T, H, K], the codewords of keys
  Tensor v;         // [B, T, H, V]
  Tensor code;      // int64 [B, T, H]
  Tensor codebook;  // [H, M, K]; has no gradient
  Tensor r;         // [window + 1, H, K], of distances 0 to window
  int64_t block;    // tokens of a block
  Tensor position;  // int64 [B], tokens of the running document that were read before
  Tensor starts;    // bool [B, T], where documents start, or undefined
  // The tokens before, newest last: at most window + block - 1, or window when nothing is summed.
  Tensor past_k, past_v, past_code;  // [B, W, H, K], [B, W, H, V], int64 [B, W, H]
  Tensor count, mean;  // those before them by code, int64 [B, H, M] and [B, H, M, V]; undefined: they are forgotten

  std::vector<Tensor*> state() {
    std::vector<Tensor*> parts = {&past_k, &past_v, &past_code};
    if (count.defined()) parts.insert(parts.end(), {&count, &mean});
    return parts;
  }
};

struct VqOutput {
  Tensor o;                                       // [B, T, H, V]
  Tensor past_k, past_v, past_code, count, mean;  // after the last token
};

extern const Operation<VqOutput, VqInput> vq_attention;

}  // namespace lineal::kernels
