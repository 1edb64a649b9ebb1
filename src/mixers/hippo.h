// HiPPO: linear systems whose state is the best polynomial or trigonometric approximation of what they have read.
//                                                            (HiPPO, 2020; How to Train Your HiPPO, 2022)
//   LegS     x' = (A x + B u) / t     the whole past, [0, t], in Legendre polynomials
//   LegT     x' = (2 / W) (A x + B u)    the last W, in Legendre polynomials
//   Fourier  x' = (2 / W) (A x + B u)    the last W, in 1, cosines and sines
// Everything here is float64.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace lineal {

using at::Tensor;

enum class Measure { legs, legt, fourier };
/// {"legs", "legt", "fourier"}; `measure_of` throws Error for another name.
const std::vector<std::string>& measure_names();
Measure measure_of(const std::string& name);

/// x' = A x + B u.
struct LinearSystem {
  Tensor A;  // [N, N]
  Tensor B;  // [N]
};

/// With r_n = sqrt(2n + 1), n, k = 0 .. N-1:
///   LegS     A_nk = -r_n r_k below the diagonal, -(n + 1) on it, 0 above;  B_n = r_n
///   LegT     A_nk = -r_n r_k / 2 for k <= n, times (-1)^(k-n) above;  B_n = r_n / 2
///   Fourier  A = S - B B^T;  S_{2m, 2m+1} = -pi m, S_{2m+1, 2m} = pi m;  B = 1, 0, sqrt 2, 0, sqrt 2, ...
/// Fourier needs an even N, else Error.
LinearSystem hippo(Measure measure, int64_t N);

enum class Discretization { forward_euler, backward_euler, bilinear, zoh };
/// {"forward_euler", "backward_euler", "bilinear", "zoh"}; `discretization_of` throws Error for another name.
const std::vector<std::string>& discretization_names();
Discretization discretization_of(const std::string& name);

/// x_{t+1} = A x_t + B u_t for steps of length dt over which u is held:
///   forward_euler   I + dt A                            dt B
///   backward_euler  (I - dt A)^{-1}                     (I - dt A)^{-1} dt B
///   bilinear        (I - dt A / 2)^{-1} (I + dt A / 2)  (I - dt A / 2)^{-1} dt B
///   zoh             exp(dt A)                           integral_0^dt exp(s A) ds B      exact
LinearSystem discretize(const LinearSystem& system, double dt, Discretization method);

/// A = V (diag(w) - sum_r p_r p_r^*) V^*, of every pair of conjugates the one with negative imaginary part; what is
/// left out is conj.                                      (Efficiently Modeling Long Sequences, 2022, theorem 1)
struct NormalPlusLowRank {
  Tensor w;  // [N/2]        ascending imaginary parts: the highest frequency first
  Tensor P;  // [rank, N/2]  in the basis of V
  Tensor B;  // [N/2]        V^* B
  Tensor V;  // [N, N/2]     orthonormal columns; unique up to a phase each
};

/// The low-rank vectors in the original basis, [rank, N]: A + sum_r p_r p_r^T is a multiple of I plus a skew-symmetric
/// matrix. LegS and Fourier have one, LegT two; zeros beyond. Error for a rank below that.
Tensor low_rank_correction(Measure measure, int64_t N, int64_t rank);

/// N is even. The pair of zero eigenvalues of Fourier gets (e_0 + i e_1) / sqrt 2.
NormalPlusLowRank normal_plus_low_rank(Measure measure, int64_t N, int64_t rank);

}  // namespace lineal
