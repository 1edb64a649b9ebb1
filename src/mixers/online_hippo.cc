#include "mixers/online_hippo.h"

#include <ATen/ATen.h>

#include <cmath>
#include <random>

#include "core/error.h"

namespace lineal {

Tensor hippo_basis(Measure measure, int64_t N, const Tensor& s) {
  std::vector<Tensor> rows;
  if (measure == Measure::fourier) {
    for (int64_t m = 0; 2 * m < N; ++m) {
      const Tensor angle = 2 * M_PI * static_cast<double>(m) * s;
      rows.push_back(m == 0 ? at::ones_like(s) : M_SQRT2 * angle.cos());
      rows.push_back(m == 0 ? at::zeros_like(s) : M_SQRT2 * angle.sin());
    }
    return at::stack(rows, 1);
  }
  const Tensor x = 1 - 2 * s;
  Tensor before = at::zeros_like(x), now = at::ones_like(x);  // P_{n-1}, P_n
  for (int64_t n = 0; n < N; ++n) {
    const auto order = static_cast<double>(n);
    rows.push_back(std::sqrt(2 * order + 1) * now);
    const Tensor next = ((2 * order + 1) * x * now - order * before) / (order + 1);
    before = now, now = next;
  }
  return at::stack(rows, 1);
}

OnlineHippo::OnlineHippo(Measure measure, int64_t N, Discretization method, double window)
    : measure_(measure), method_(method), window_(window), system_(hippo(measure, N)), x_(at::zeros({N}, at::kDouble)) {
  if (measure == Measure::legs) return;
  if (!(window > 0)) fail("hippo: window is ", window, ", expected more than 0 samples");
  step_ = discretize(system_, 2 / window, method);
}

LinearSystem OnlineHippo::scaled_step() const {
  const double now = 1 / static_cast<double>(read_), then = 1 / static_cast<double>(read_ + 1);
  if (method_ == Discretization::forward_euler) return discretize(system_, now, method_);
  if (method_ == Discretization::backward_euler) return discretize(system_, then, method_);
  if (method_ == Discretization::zoh) return discretize(system_, std::log1p(now), method_);
  const auto explicit_half = discretize(system_, now / 2, Discretization::forward_euler);
  const auto implicit_half = discretize(system_, then / 2, Discretization::backward_euler);
  return {at::mm(implicit_half.A, explicit_half.A), at::mv(implicit_half.A, explicit_half.B) + implicit_half.B};
}

void OnlineHippo::read(double u) {
  if (measure_ != Measure::legs || read_ > 0) {
    const auto [A, B] = measure_ == Measure::legs ? scaled_step() : step_;
    x_ = at::mv(A, x_) + u * B;
  } else {
    x_[0] = u;
  }
  ++read_;
}

double OnlineHippo::span() const { return measure_ == Measure::legs ? static_cast<double>(read_) : window_; }

Tensor OnlineHippo::recall(const Tensor& age) const {
  return at::mv(hippo_basis(measure_, x_.size(0), age / span()), x_);
}

BandLimited BandLimited::random(int64_t tones, double cycles, int64_t length, uint64_t seed) {
  std::mt19937_64 generator(seed);
  const auto uniform = [&] {
    return static_cast<double>(generator() >> 11) * 0x1p-53;
  };  // in [0, 1), everywhere the same
  BandLimited u;
  double sum = 0;
  for (int64_t j = 0; j < tones; ++j) {
    u.amplitude.push_back(0.1 + uniform());
    u.omega.push_back(2 * M_PI * cycles * uniform() / static_cast<double>(length));
    u.phase.push_back(2 * M_PI * uniform());
    sum += u.amplitude.back();
  }
  for (double& a : u.amplitude) a /= sum;
  return u;
}

Tensor BandLimited::operator()(const Tensor& t) const {
  Tensor u = at::zeros_like(t);
  for (size_t j = 0; j < amplitude.size(); ++j) u += amplitude[j] * (omega[j] * t + phase[j]).cos();
  return u;
}

double legs_error_bound(const BandLimited& u, int64_t length, int64_t N) {
  double bound = 0;
  for (size_t j = 0; j < u.amplitude.size(); ++j) {
    const double log_c = std::log(u.omega[j] * static_cast<double>(length) / 2);
    double least = 0;  // logarithm; k = 0
    for (int64_t k = 1; k <= N; ++k) {
      const auto order = static_cast<double>(k), degree = static_cast<double>(N);
      least = std::min(least, order * log_c + (std::lgamma(degree - order + 1) - std::lgamma(degree + order + 1)) / 2);
    }
    bound += std::abs(u.amplitude[j]) * (std::exp(least) + std::abs(u.omega[j]) / (2 * std::sqrt(3.0)));
  }
  return bound;
}

}  // namespace lineal
