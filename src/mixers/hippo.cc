#include "mixers/hippo.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"

namespace lineal {
namespace {

Tensor indices(int64_t N) { return at::arange(N, at::kDouble); }

template <class Choice>
Choice choice_of(const std::string& what, const std::string& name, const std::vector<std::string>& names) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) fail_unknown("hippo", what, name, names);
  return static_cast<Choice>(found - names.begin());
}

}  // namespace

const std::vector<std::string>& measure_names() {
  static const std::vector<std::string> names = {"legs", "legt", "fourier"};
  return names;
}

Measure measure_of(const std::string& name) { return choice_of<Measure>("measure", name, measure_names()); }

const std::vector<std::string>& discretization_names() {
  static const std::vector<std::string> names = {"forward_euler", "backward_euler", "bilinear", "zoh"};
  return names;
}

Discretization discretization_of(const std::string& name) {
  return choice_of<Discretization>("discretization", name, discretization_names());
}

LinearSystem hippo(Measure measure, int64_t N) {
  if (N < 1) fail("hippo: N is ", N, ", expected at least 1");
  const Tensor n = indices(N), r = (2 * n + 1).sqrt(), products = at::outer(r, r);
  if (measure == Measure::legs) return {-(products.tril(-1) + at::diag(n + 1)), r};
  if (measure == Measure::legt) {
    const Tensor signs = 1 - 2 * (n.unsqueeze(0) - n.unsqueeze(1)).remainder(2);  // (-1)^(k-n)
    return {-(products.tril() + (products * signs).triu(1)) / 2, r / 2};
  }
  if (N % 2 != 0) fail("hippo: N is ", N, ", the Fourier measure needs an even one");
  Tensor above = at::zeros({N - 1}, at::kDouble);  // S_{n, n+1}
  for (int64_t m = 0; 2 * m + 1 < N; ++m) above[2 * m] = -M_PI * static_cast<double>(m);
  Tensor B = at::zeros({N}, at::kDouble);
  B.slice(0, 0, N, 2).fill_(M_SQRT2);
  B[0] = 1;
  return {at::diag(above, 1) - at::diag(above, -1) - at::outer(B, B), B};
}

LinearSystem discretize(const LinearSystem& system, double dt, Discretization method) {
  const auto& [A, B] = system;
  const int64_t N = A.size(0);
  const Tensor I = at::eye(N, A.options());
  if (method == Discretization::forward_euler) return {I + dt * A, dt * B};
  if (method == Discretization::zoh) {  // exp of [[A, B], [0, 0]] dt: A may be singular
    Tensor joint = at::zeros({N + 1, N + 1}, A.options());
    joint.slice(0, 0, N).slice(1, 0, N).copy_(A);
    joint.slice(0, 0, N).select(1, N).copy_(B);
    const Tensor flow = at::linalg_matrix_exp(dt * joint).slice(0, 0, N);
    return {flow.slice(1, 0, N), flow.select(1, N)};
  }
  const double ahead = method == Discretization::bilinear ? dt / 2 : dt;  // of the step, by the slope at its end
  const Tensor right = at::cat({I + (dt - ahead) * A, (dt * B).unsqueeze(1)}, 1);
  const Tensor solved = at::linalg_solve(I - ahead * A, right);
  return {solved.slice(1, 0, N), solved.select(1, N)};
}

Tensor low_rank_correction(Measure measure, int64_t N, int64_t rank) {
  const int64_t least = measure == Measure::legt ? 2 : 1;
  if (rank < least) {
    fail("hippo: rank is ", rank, ", expected at least ", least, " for ",
         measure_names()[static_cast<size_t>(measure)]);
  }
  const Tensor n = indices(N);
  Tensor P = at::zeros({rank, N}, at::kDouble);
  if (measure == Measure::fourier) {
    P[0].copy_(hippo(measure, N).B);
  } else if (measure == Measure::legs) {
    P[0].copy_((n + 0.5).sqrt());
  } else {
    P[0].copy_((n + 0.5).sqrt() * n.remainder(2));
    P[1].copy_((n + 0.5).sqrt() * (1 - n.remainder(2)));
  }
  return P;
}

NormalPlusLowRank normal_plus_low_rank(Measure measure, int64_t N, int64_t rank) {
  if (N % 2 != 0 || N < 2) fail("hippo: N is ", N, ", expected an even one");
  const auto [A, B] = hippo(measure, N);
  const Tensor P = low_rank_correction(measure, N, rank), normal = A + at::matmul(P.t(), P);
  const Tensor i = at::complex(at::zeros({}, at::kDouble), at::ones({}, at::kDouble));
  auto [frequencies, V] = at::linalg_eigh(-i * normal);  // ascending
  frequencies = frequencies.slice(0, 0, N / 2);
  V = V.slice(1, 0, N / 2).clone();
  if (measure == Measure::fourier) {  // eigenvectors of the null space of e_0 and e_1 need not be conjugates
    Tensor last = V.select(1, -1);
    last.zero_();
    last[0] = M_SQRT1_2;
    last[1] = i * M_SQRT1_2;
  }
  const Tensor w = at::complex(normal.diag().mean().expand_as(frequencies), frequencies);
  const Tensor inverse = V.conj().t().resolve_conj();
  return {w, at::matmul(P.to(inverse.scalar_type()), inverse.t()), at::mv(inverse, B.to(inverse.scalar_type())), V};
}

}  // namespace lineal
