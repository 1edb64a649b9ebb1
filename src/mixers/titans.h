// The memory of Titans as a function of tensors; formulas in titans.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/segments.h"

namespace lineal {

using at::Tensor;

struct Memory {
  Tensor S;         // [B, H, K, V]
  Tensor momentum;  // [B, H, K, V]
  Tensor start;     // [B, H, K, V], S at the start of the running inner batch
};

struct MemoryInput {
  Tensor q, k;               // [B, T, H, K]
  Tensor v;                  // [B, T, H, V]
  Tensor theta, eta, alpha;  // [B, T, H]: step, what momentum keeps, what the memory forgets
  Tensor position;           // int64 [B, T], places in the document
  Segments segments;
};

/// -> o [B, T, H, V], and `memory` after the last token. One token after another; gradients of the inner loss are taken
/// where the token's inner batch of mini_batch_size began.
Tensor titans_memory(const MemoryInput& in, Memory& memory, int64_t mini_batch_size);

}  // namespace lineal
