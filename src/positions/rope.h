// Rotary position embedding.                                        (RoFormer, 2021)
//   angle    a_i = position * theta^(-2i/K),  i = 0..K/2-1
//   output   (u, w) -> (u cos a_i - w sin a_i, u sin a_i + w cos a_i)   for each pair of components
#pragma once

#include <ATen/core/Tensor.h>

namespace lineal {

using at::Tensor;

/// Which two components make pair i: (2i, 2i+1), or (i, i + K/2).
enum class RopePairs { interleaved, halves };

/// x [B, T, H, K] with K even, position int64 [B, T] -> x rotated, same type. Angles are computed in float64.
Tensor rope(const Tensor& x, const Tensor& position, double theta, RopePairs pairs);

}  // namespace lineal
