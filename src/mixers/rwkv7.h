// The recurrence of RWKV-7 as functions of tensors; formulas in rwkv7.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/kernels.h"

namespace lineal {

using at::Tensor;

/// What it reads: S_t = diag(exp(g_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T and o_t = S_t^T q_t; a asks the
/// state before it decays.
struct RankOneInput {
  Tensor q, k, a, b;  // [B, T, H, K]
  Tensor v;           // [B, T, H, V]
  Tensor g;           // logarithms of decays, [B, T, H, K]
  Tensor S;           // [B, H, K, V]
  Tensor starts;      // bool [B, T], where documents start with S = 0, or undefined
};

/// The definition: one token after another.
kernels::RecurrenceOutput rank_one_reference(const RankOneInput& in);

/// The same numbers, chunk_size tokens at once, with B T H chunk_size K numbers of memory.
kernels::RecurrenceOutput rank_one_chunked(const RankOneInput& in, int64_t chunk_size);

}  // namespace lineal
