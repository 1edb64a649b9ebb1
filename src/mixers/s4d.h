// S4D's system as functions of tensors; formulas in s4d.cc.
#pragma once

#include "mixers/hippo.h"
#include "mixers/state_space.h"

namespace lineal {

/// Continuous A and B, one of each pair of conjugates, complex128 [D, N/2].
struct DiagonalSystem {
  Tensor A, B;
};

/// x' = A x + B u with steps dt float64 [D, 1]: A becomes log dA.        (S4D, 2022, section 3.2; zoh or bilinear)
DiagonalSystem discretize(const DiagonalSystem& system, const Tensor& dt, Discretization method);

/// For C complex128 [D, N/2].
class DiagonalStateSpace : public StateSpace {
 public:
  DiagonalStateSpace(DiagonalSystem discrete, Tensor C);
  std::pair<Tensor, Tensor> step(const Tensor& u, const Tensor& x) const override;
  int64_t few_tokens() const override { return 8; }

 protected:
  std::shared_ptr<const Pieces> make_pieces(int64_t L, at::ScalarType type) const override;

 private:
  DiagonalSystem discrete_;
  Tensor C_, dA_;
};

/// Where the D channels start, N numbers each: A_n = -1/2 - i f_n, n = 0 .. N/2-1                (S4D, 2022, section 4)
///   lin   f_n = pi n                            B_n = 1
///   inv   f_n = (N / pi) (N / (2n + 1) - 1)     B_n = 1
///   legs  the frequencies and V^* B of LegS, the highest first
/// [N/2] both.
DiagonalSystem s4d_initial(const std::string& init, int64_t N);

/// Imaginary parts within [-2, 2], as the public implementation starts B.
Tensor clipped(const Tensor& B);

}  // namespace lineal
