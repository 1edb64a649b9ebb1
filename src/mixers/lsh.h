// Locality-sensitive hashing of attention's keys; formulas in lsh.cc.
#pragma once

#include <ATen/core/Tensor.h>

namespace lineal {

using at::Tensor;

/// The score of a token with itself, which is attended to when nothing else can be.
constexpr double kSelfScore = -5e4;

/// x [..., K], rotations [K, R, n/2] -> bucket of each of R rounds, int64 [..., R], below n: the largest of [x R_r, -x
/// R_r].
Tensor lsh_buckets(const Tensor& x, const Tensor& rotations);

struct LshOptions {
  int64_t bucket_size = 64;
  bool causal = false;
  bool attend_across_buckets = true;
  bool allow_duplicate_attention = true;
};

/// Reformer's attention as published, over a whole sequence: qk [B, T, K] are queries and, at unit length, keys; v
/// [B, T, V]; rotations [K, R, T/bucket_size/2] -> [B, T, V]. Throws Error unless 2 bucket_size divides T. With causal,
/// no later token is attended to, but which earlier ones are depends on later ones.
Tensor lsh_attention(const Tensor& qk, const Tensor& v, const Tensor& rotations, const LshOptions& options);

}  // namespace lineal
