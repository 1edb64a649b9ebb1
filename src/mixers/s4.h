// S4's system as functions of tensors; formulas in s4.cc.
#pragma once

#include "mixers/hippo.h"
#include "mixers/state_space.h"

namespace lineal {

/// Continuous diag(A) - sum_r P_r P_r^* over N numbers, of which A, B and P give one of each pair of conjugates,
/// complex128.
struct LowRankSystem {
  Tensor A, B;  // [D, N/2]
  Tensor P;     // [rank, D, N/2]
  Tensor dt;    // float64 [D, 1]
};

/// One bilinear step in O(N rank): dA x + dB u.
class LowRankStep {
 public:
  explicit LowRankStep(const LowRankSystem& system);
  /// u float64 [M, D], x complex128 [M, D, N/2] -> the next x.
  Tensor operator()(const Tensor& u, const Tensor& x) const;
  /// dA as a matrix on states as real vectors (real_view), float64 [D, N, N].
  Tensor matrix() const;
  /// dB as such a vector, [D, N].
  Tensor input() const;

 private:
  Tensor project(const Tensor& x) const;  // 2 Re(P^* x), [M, D, rank]
  Tensor expand(const Tensor& s) const;   // P s, [M, D, N/2]

  Tensor forth_, back_;  // 2/dt + A and (2/dt - A)^{-1} of the diagonal, [D, N/2]
  Tensor B_;             // 2 B
  Tensor P_;             // [D, rank, N/2]
  Tensor inner_;         // (1 + 2 Re(P^* back P))^{-1}, [D, rank, rank]
};

/// K_l = 2 Re(C . dA^l dB), l = 0 .. L-1, from C~ = C (I - dA^L), complex128 [channels, D, N/2]
/// -> float64 [channels, D, L].                                              (S4, 2022, algorithm 1)
Tensor s4_kernel(const LowRankSystem& system, const Tensor& truncated, int64_t L);

/// C~ of C, both complex128 [channels, D, N/2].
Tensor s4_truncate(const LowRankSystem& system, const Tensor& C, int64_t L);

/// For C complex128 [D, N/2].
class LowRankStateSpace : public StateSpace {
 public:
  LowRankStateSpace(LowRankSystem system, Tensor C);
  std::pair<Tensor, Tensor> step(const Tensor& u, const Tensor& x) const override;
  int64_t few_tokens() const override { return 32; }

 protected:
  std::shared_ptr<const Pieces> make_pieces(int64_t L, at::ScalarType type) const override;

 private:
  LowRankSystem system_;
  Tensor C_;
  LowRankStep step_;
};

}  // namespace lineal
