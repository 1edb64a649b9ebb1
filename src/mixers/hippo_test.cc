#include "mixers/hippo.h"

#include <ATen/ATen.h>

#include <cmath>

#include "mixers/online_hippo.h"
#include "testing/testing.h"

namespace lineal {
namespace {

Tensor complex_of(const Golden& golden, const std::string& name) {
  return at::complex(golden[name + "_re"], golden[name + "_im"]);
}

/// x and conj(x) along dimension `dim`.
Tensor with_conjugates(const Tensor& x, int64_t dim) { return at::cat({x, x.conj()}, dim); }

/// V (diag(w) - P^T conj(P)) V^* over all N, which is A.
Tensor rebuilt(const NormalPlusLowRank& form) {
  const Tensor V = with_conjugates(form.V, 1), P = with_conjugates(form.P, 1);
  const Tensor inside = at::diag(with_conjugates(form.w, 0)) - at::matmul(P.t(), P.conj());
  return at::matmul(at::matmul(V, inside), V.conj().t());
}

class Hippo : public testing::TestWithParam<std::string> {};

TEST_P(Hippo, Golden) {
  const Golden golden("s4/hippo_" + GetParam() + "_N16");
  const Measure measure = measure_of(GetParam());
  const LinearSystem system = hippo(measure, 16);
  EXPECT_CLOSE(system.A, golden["A"], 1e-12);
  EXPECT_CLOSE(system.B, golden["B"], 1e-12);
  const int64_t rank = golden["P_orig"].size(0);
  EXPECT_CLOSE(low_rank_correction(measure, 16, rank), golden["P_orig"], 1e-12);

  const NormalPlusLowRank form = normal_plus_low_rank(measure, 16, rank);
  const Tensor P = complex_of(golden, "P"), B = at::complex(golden["Bv_re"], golden["Bv_im"]);
  EXPECT_CLOSE(at::view_as_real(form.w), at::view_as_real(complex_of(golden, "W")), 1e-10);
  EXPECT_CLOSE(form.B.abs(), B.abs(), 1e-10);
  EXPECT_CLOSE(form.P.abs(), P.abs(), 1e-10);
  EXPECT_CLOSE(at::view_as_real(form.P.conj() * form.B), at::view_as_real(P.conj() * B), 1e-10);
  EXPECT_CLOSE(at::real(rebuilt(form)), golden["A"], 1e-10);
  const Tensor V = with_conjugates(form.V, 1);
  EXPECT_CLOSE(at::real(at::mv(V, with_conjugates(form.B, 0))), golden["B"], 1e-10);
}

TEST_P(Hippo, NormalPlusLowRankRebuildsA) {
  const Measure measure = measure_of(GetParam());
  for (const int64_t N : {2, 4, 10, 64}) {
    const int64_t rank = measure == Measure::legt ? 2 : 1;
    for (const int64_t more : {0, 2}) {
      const NormalPlusLowRank form = normal_plus_low_rank(measure, N, rank + more);
      const Tensor A = rebuilt(form), V = with_conjugates(form.V, 1);
      EXPECT_CLOSE(at::real(A), hippo(measure, N).A, 1e-12) << N;
      EXPECT_LT(at::imag(A).abs().max().item<double>(), 1e-11) << N;
      EXPECT_CLOSE(at::real(at::matmul(V.conj().t(), V)), at::eye(N), 1e-12) << N;
      EXPECT_EQ(form.P.sizes(), (std::vector<int64_t>{rank + more, N / 2}));
    }
  }
}

/// Each method against the flow of the system over one step: errors of the order of its method.
TEST_P(Hippo, DiscretizationsConvergeByTheirOrder) {
  const LinearSystem system = hippo(measure_of(GetParam()), 6);
  const auto error = [&](Discretization method, double dt) {
    const LinearSystem step = discretize(system, dt, method);
    Tensor A = at::eye(6, at::kDouble), B = at::zeros({6}, at::kDouble), term = dt * system.B, power = A;
    for (int k = 1; k < 40; ++k) {  // series of exp(dt A) and its integral
      B = B + term;
      term = dt * at::mv(system.A, term) / (k + 1);
      power = dt * at::mm(system.A, power) / k;
      A = A + power;
    }
    return std::max((step.A - A).abs().max().item<double>(), (step.B - B).abs().max().item<double>());
  };
  EXPECT_LT(error(Discretization::zoh, 0.1), 1e-13);
  const double h = 1e-3;
  for (const auto& [method, order] : std::vector<std::pair<Discretization, int>>{
           {Discretization::forward_euler, 2}, {Discretization::backward_euler, 2}, {Discretization::bilinear, 3}}) {
    EXPECT_NEAR(error(method, 2 * h) / error(method, h), std::pow(2, order), 0.3) << static_cast<int>(method);
  }
}

INSTANTIATE_TEST_SUITE_P(Measures, Hippo, testing::ValuesIn(measure_names()),
                         [](const auto& info) { return info.param; });

/// Gauss-Legendre nodes and weights on [0, 1], from the eigenvalues of the Jacobi matrix.
std::pair<Tensor, Tensor> gauss(int64_t n) {
  const Tensor k = at::arange(1, n, at::kDouble), beta = k / (4 * k * k - 1).sqrt();
  const auto [x, V] = at::linalg_eigh(at::diag(beta, 1) + at::diag(beta, -1));
  return {(x + 1) / 2, V.select(0, 0).square()};
}

/// The Legendre coefficients of the signal that holds u, sample by sample, over the last `span` of its samples.
Tensor projection(const Tensor& u, int64_t span, int64_t N) {
  const auto [node, weight] = gauss(N);
  Tensor x = at::zeros({N}, at::kDouble);
  for (int64_t k = 0; k < span; ++k) {  // by age
    const Tensor s = (static_cast<double>(k) + node) / static_cast<double>(span);
    x += at::mv(hippo_basis(Measure::legs, N, s).t(), weight) * u[u.size(0) - 1 - k] / static_cast<double>(span);
  }
  return x;
}

TEST(OnlineHippo, TheBasisIsOrthonormal) {
  const auto [node, weight] = gauss(60);
  for (const Measure measure : {Measure::legs, Measure::legt, Measure::fourier}) {
    const Tensor basis = hippo_basis(measure, 12, node);
    Tensor expected = at::eye(12, at::kDouble);
    if (measure == Measure::fourier) expected[1][1] = 0;  // the sine of frequency 0
    EXPECT_CLOSE(at::matmul(basis.t() * weight, basis), expected, 1e-12);
  }
}

TEST(OnlineHippo, LegSByZohIsTheProjectionOfWhatItRead) {
  const Tensor u = normal({77}, 1, at::kDouble);
  OnlineHippo memory(Measure::legs, 19, Discretization::zoh);
  for (int64_t k = 0; k < 77; ++k) memory.read(u[k].item<double>());
  EXPECT_CLOSE(memory.state(), projection(u, 77, 19), 1e-11);
}

/// Over the length read, at eight times between samples.
double legs_error(const BandLimited& u, int64_t length, int64_t N, Discretization method) {
  OnlineHippo memory(Measure::legs, N, method);
  const Tensor samples = u(at::arange(length, at::kDouble) + 0.5);
  for (int64_t k = 0; k < length; ++k) memory.read(samples[k].item<double>());
  const Tensor t = (at::arange(8 * length, at::kDouble) + 0.5) / 8;
  return (memory.recall(static_cast<double>(length) - t) - u(t)).square().mean().sqrt().item<double>();
}

/// The error falls with N to what holding samples leaves, whose bound is loose: errors of both halves of a sample
/// cancel.
TEST(OnlineHippo, LegSRecallsABandLimitedSignalWithinTheBound) {
  const int64_t length = 600;
  for (const uint64_t seed : {0, 1, 2}) {
    const BandLimited u = BandLimited::random(7, 6, length, seed);
    double before = 1;
    for (const int64_t N : {4, 8, 12, 16}) {
      const double error = legs_error(u, length, N, Discretization::zoh), bound = legs_error_bound(u, length, N);
      EXPECT_LE(error, bound) << "N " << N << ", seed " << seed;
      EXPECT_LT(error, 0.8 * before) << "N " << N << ", seed " << seed;
      before = error;
    }
    const double error = legs_error(u, length, 32, Discretization::zoh), bound = legs_error_bound(u, length, 32);
    EXPECT_LE(error, bound) << seed;
    EXPECT_LT(error, 1e-4) << seed;
    EXPECT_LT(bound, 0.02) << seed;
  }
}

/// The first term of the bound, of one tone and samples too fine to matter: within a factor of 100.
TEST(OnlineHippo, TheBoundOnTruncationIsClose) {
  const int64_t length = 1500, N = 12;
  const BandLimited u{{1}, {2 * 6.0 / static_cast<double>(length)}, {0.3}};  // c = 6
  const double bound = legs_error_bound(u, length, N) - u.omega[0] / (2 * std::sqrt(3.0));
  const double error = legs_error(u, length, N, Discretization::zoh);
  EXPECT_LE(error, bound);
  EXPECT_GT(error, bound / 100);
}

/// What is left is the discretisation's: of the order of one sample for Euler's methods, of its square for the other.
TEST(OnlineHippo, LegSDiscretizationsAgreeAsSamplesGetFiner) {
  for (const auto& [method, least] : std::vector<std::pair<Discretization, double>>{
           {Discretization::forward_euler, 3}, {Discretization::backward_euler, 3}, {Discretization::bilinear, 7}}) {
    const auto error = [&](int64_t length) {
      return legs_error(BandLimited::random(5, 1.5, length, 3), length, 14, method);
    };
    EXPECT_GT(error(200) / error(800), least) << static_cast<int>(method);
  }
}

/// A window of a signal that goes on for three: the error falls with N, and what is older is forgotten.
TEST(OnlineHippo, SlidingWindowsRecallTheirWindow) {
  const int64_t window = 300, length = 3 * window;
  const BandLimited u = BandLimited::random(5, 6, length, 4);
  const Tensor samples = u(at::arange(length, at::kDouble) + 0.5), age = at::arange(window, at::kDouble) + 0.5;
  for (const Measure measure : {Measure::legt, Measure::fourier}) {
    for (const Discretization method : {Discretization::bilinear, Discretization::zoh}) {
      const auto error = [&](int64_t N, double before) {
        OnlineHippo memory(measure, N, method, static_cast<double>(window));
        for (int64_t k = 0; k < window; ++k) memory.read(before);
        for (int64_t k = window; k < length; ++k) memory.read(samples[k].item<double>());
        const Tensor wrong = memory.recall(age) - u(static_cast<double>(length) - age);
        return wrong.square().mean().sqrt().item<double>();
      };
      const double few = error(4, 0), more = error(8, 0), many = error(16, 0);
      EXPECT_LT(more, 0.8 * few);
      EXPECT_LT(many, 0.8 * more);
      EXPECT_LT(many, measure == Measure::legt ? 0.001 : 0.1);
      EXPECT_NEAR(error(16, 3), many, measure == Measure::legt ? 0.001 : 0.1);
    }
  }
}

TEST(Hippo, RefusesWhatCannotBe) {
  EXPECT_ERROR(measure_of("leg"), "unknown measure 'leg'; did you mean");
  EXPECT_ERROR(discretization_of("zo"), "unknown discretization 'zo'; did you mean 'zoh'");
  EXPECT_ERROR(hippo(Measure::fourier, 7), "hippo: N is 7, the Fourier measure needs an even one");
  EXPECT_ERROR(hippo(Measure::legs, 0), "hippo: N is 0");
  EXPECT_ERROR(normal_plus_low_rank(Measure::legs, 7, 1), "hippo: N is 7, expected an even one");
  EXPECT_ERROR(normal_plus_low_rank(Measure::legt, 8, 1), "hippo: rank is 1, expected at least 2 for legt");
  EXPECT_ERROR(OnlineHippo(Measure::legt, 8, Discretization::zoh), "hippo: window is 0");
}

}  // namespace
}  // namespace lineal
