// A signal remembered sample by sample in the state of a HiPPO system, and its past read back from the state.
#pragma once

#include <cstdint>
#include <vector>

#include "mixers/hippo.h"

namespace lineal {

/// The N functions of a measure at s = age / span, [P] -> [P, N]; orthonormal over 0 <= s <= 1. LegS and LegT:
/// sqrt(2n+1) P_n(1 - 2s); Fourier: 1, 0, sqrt 2 cos(2 pi m s), sqrt 2 sin(2 pi m s), m = 1 ...
Tensor hippo_basis(Measure measure, int64_t N, const Tensor& s);

/// The state x [N], from zero. Sample k is the signal over times [k, k + 1].
///   LegS           x' = (A x + B u) / t. Sample 0 gives x = u_0 (1, 0, 0, ...), the exact state at t = 1; then from t
///   = k:
///                  forward_euler takes the slope at k, backward_euler at k + 1, bilinear half of each
///                                                                                    (HiPPO, 2020, appendix B.3)
///                  zoh is exact: exp(A log((k + 1) / k))
///   LegT, Fourier  x' = (2 / window) (A x + B u), `discretize` with a step of one sample
class OnlineHippo {
 public:
  /// window: samples; LegS has none.
  OnlineHippo(Measure measure, int64_t N, Discretization method, double window = 0);

  void read(double u);
  const Tensor& state() const { return x_; }
  /// Samples that the state reaches back: those read, or the window.
  double span() const;
  /// The signal before now by its age in samples, 0 <= age <= span(): float64 [P] -> [P].
  Tensor recall(const Tensor& age) const;

 private:
  LinearSystem scaled_step() const;  // LegS

  Measure measure_;
  Discretization method_;
  double window_;
  LinearSystem system_, step_;
  Tensor x_;
  int64_t read_ = 0;
};

/// sum_j a_j cos(omega_j t + phase_j), t in samples.
struct BandLimited {
  std::vector<double> amplitude, omega, phase;

  /// `tones` of random frequency up to `cycles` per `length` samples, |a_1| + |a_2| + ... = 1; a function of the seed.
  static BandLimited random(int64_t tones, double cycles, int64_t length, uint64_t seed);
  /// float64 [P] -> [P].
  Tensor operator()(const Tensor& t) const;
};

/// Bounds the root mean square, over 0 <= t <= length, of u minus what LegS with zoh recalls after reading `length`
/// samples u(k + 1/2):
///   sum_j |a_j| min_{k <= N} c_j^k sqrt((N - k)! / (N + k)!),  c_j = omega_j length / 2
///                    of a projection on degrees below N                     (Schwab, p- and hp-FEM, 1998,
///                    theorem 3.11; order by order it is HiPPO, 2020, proposition 6)
///   + sum_j |a_j| omega_j / (2 sqrt 3)
///                    of holding samples: |u(t) - u(k + 1/2)| <= |t - k - 1/2| max |u'|, and a projection lengthens
///                    nothing
double legs_error_bound(const BandLimited& u, int64_t length, int64_t N);

}  // namespace lineal
