// Rotary position embedding.                                        (RoFormer, 2021)
//   angle    a_i = position * f_i,  f_i = theta^(-2i/K),  i = 0..K/2-1
//   output   (u, w) -> (u cos a_i - w sin a_i, u sin a_i + w cos a_i)   for each pair of components
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <string>

namespace lineal {

using at::Tensor;

/// Which two components make pair i: (2i, 2i+1), or (i, i + K/2).
enum class RopePairs { interleaved, halves };

/// What turns a head: the frequency of each pair, float64 [K/2], and a scale of what is turned.
struct Frequencies {
  Tensor f;
  double scale = 1;
};
Frequencies rope_frequencies(int64_t K, double theta);
/// Throws Error for a base that turns nothing or backwards, above 0 (none at all) and up to 1.
void check_rotary_base(const std::string& who, double theta);

/// Angles of some positions, what kernels::RopeInput names c and s: [P, K].
struct RopeTable {
  Tensor c, s;
};

/// Of positions [P], any integers or float64; `like`: the type (float32 for narrower ones) and device of what they will
/// turn. Angles are computed in float64.
RopeTable rope_table(const Tensor& position, const Frequencies& frequencies, RopePairs pairs, at::TensorOptions like);
RopeTable rope_table(const Tensor& position, int64_t K, double theta, RopePairs pairs, at::TensorOptions like);

/// x [B, T, H, K] with K even, place int64 [B, T], each token's row of the table -> x rotated, same type.
Tensor rope(const Tensor& x, const Tensor& place, const RopeTable& table, RopePairs pairs);

/// x [B, T, H, K] with K even, position [B, T], int64 of at least 0 or float64 -> x rotated, same type.
Tensor rope(const Tensor& x, const Tensor& position, const Frequencies& frequencies, RopePairs pairs);
Tensor rope(const Tensor& x, const Tensor& position, double theta, RopePairs pairs);

}  // namespace lineal
