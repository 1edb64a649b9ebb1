// S4: a state space of a normal and a low-rank matrix.
//                                      (Efficiently Modeling Long Sequences with Structured State Spaces, 2022)
//   initial  x_0 = 0                                               [N/2] complex, per channel
//   update   x_t = dA x_{t-1} + dB u_t;  dA = (2/dt - A)^{-1} (2/dt + A),  dB = (2/dt - A)^{-1} 2 B
//   output   y_t = 2 Re(C . x_t) + D u_t; then GLU(W gelu(y) + b)
//   views    A x = diag(-exp(A_real) - i A_imag) x - sum_r P_r 2 Re(P_r^* x);  dt = exp(inv_dt)
//   kernel   K_l = 2 Re(C . dA^l dB), l < L. With C~ = C (I - dA^L), omega = exp(-2 pi i k / L), g = (1 + omega) / 2,
//            <v> = sum_n v_n / (1 - omega - g dt A_n) over x and its conjugate, sum_l K_l omega^l is
//              <C~ dt B> - g <C~ dt P> (1 + g <P^* dt P>)^{-1} <P^* dt B>
//            The published form divides by g: at omega = -1, where g is 0, its terms are infinite.
//   cost     O(T D (N + log C)) time for pieces of C tokens, D N state; a call's powers of dA O(D N^2 (C + N log C))
#include "mixers/s4.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "mixers/s4d.h"
#include "mixers/state_space_layer.h"

namespace lineal {
namespace {

/// 2 Re(C . x) is this row times x as a real vector; its own inverse but for the factor.
Tensor output_row(const Tensor& C) { return real_view(2 * C.conj()); }

/// dA^1, dA^2, dA^4, ... up to dA^most, float64: a rounding error doubles with every square.
std::vector<Tensor> squares(const Tensor& dA, int64_t most) {
  std::vector<Tensor> powers = {dA};
  for (int64_t m = 2; m <= most; m *= 2) powers.push_back(at::bmm(powers.back(), powers.back()));
  return powers;
}

/// rows [D, M, N] times dA^n.
Tensor times_power(Tensor rows, const std::vector<Tensor>& squares, int64_t n) {
  for (const Tensor& power : squares) {
    if (n & 1) rows = at::bmm(rows, power);
    n >>= 1;
  }
  return rows;
}

Tensor truncate(const Tensor& C, const std::vector<Tensor>& squares, int64_t L) {
  const Tensor rows = output_row(C).transpose(0, 1);  // [D, channels, N]
  return complex_view(rows - times_power(rows, squares, L)).conj().transpose(0, 1) / 2;
}

class LowRankPieces : public StateSpace::Pieces {
 public:
  LowRankPieces(const LowRankSystem& system, const LowRankStep& step, const Tensor& C, int64_t L, at::ScalarType type)
      : L_(L) {
    const std::vector<Tensor> exact = squares(step.matrix(), L);
    kernel_ = s4_kernel(system, truncate(C.unsqueeze(0), exact, L), L).squeeze(0).to(type);
    for (const Tensor& power : exact) powers_.push_back(power.to(type));
    Tensor rows = at::bmm(output_row(C).unsqueeze(1), exact.front()).to(type);  // C dA^{t+1}, [D, t, N]
    Tensor columns = step.input().unsqueeze(2).to(type);                        // dA^j dB, [D, N, j]
    for (size_t i = 0; rows.size(1) < L; ++i) {
      rows = at::cat({rows, at::bmm(rows, powers_[i])}, 1);
      columns = at::cat({columns, at::bmm(powers_[i], columns)}, 2);
    }
    responses_ = rows.slice(1, 0, L).transpose(1, 2);  // [D, N, L]
    inputs_ = columns.slice(2, 0, L).transpose(1, 2);  // [D, L, N]
    for (Tensor& power : powers_) power = power.transpose(1, 2);
  }

  Tensor kernel() const override { return kernel_; }
  Tensor respond(const Tensor& x) const override { return at::bmm(x, responses_); }
  Tensor absorb(const Tensor& u) const override { return at::bmm(u, inputs_); }
  Tensor advance(const Tensor& x, const Tensor& n) const override {
    Tensor h = x;
    for (size_t i = 0; i < powers_.size(); ++i) {
      const Tensor odd = n.bitwise_right_shift(static_cast<int64_t>(i)).bitwise_and(1).to(at::kBool);
      h = at::where(odd.view({1, -1, 1}), at::bmm(h, powers_[i]), h);
    }
    return h;
  }
  Tensor advance(const Tensor& x) const override { return times_power(x, powers_, L_); }

 private:
  int64_t L_;
  std::vector<Tensor> powers_;  // transposes of dA^(2^i)
  Tensor kernel_, responses_, inputs_;
};

}  // namespace

LowRankStep::LowRankStep(const LowRankSystem& system)
    : forth_(2 / system.dt + system.A),
      back_((2 / system.dt - system.A).reciprocal()),
      B_(2 * system.B),
      P_(system.P.transpose(0, 1)) {
  const Tensor through = at::matmul(P_.conj() * back_.unsqueeze(1), P_.transpose(1, 2));  // [D, rank, rank]
  inner_ = at::linalg_inv(at::eye(P_.size(1), system.dt.options()) + 2 * at::real(through));
}

Tensor LowRankStep::project(const Tensor& x) const { return 2 * at::real((P_.conj() * x.unsqueeze(2)).sum(3)); }

Tensor LowRankStep::expand(const Tensor& s) const { return (P_ * s.unsqueeze(3)).sum(2); }

Tensor LowRankStep::operator()(const Tensor& u, const Tensor& x) const {
  const Tensor v = back_ * (forth_ * x - expand(project(x)) + B_ * u.unsqueeze(2));
  return v - back_ * expand((inner_ * project(v).unsqueeze(2)).sum(3));
}

Tensor LowRankStep::matrix() const {
  const int64_t D = B_.size(0), N = 2 * B_.size(1);
  const auto real = inner_.options();
  const Tensor unit = complex_view(at::eye(N, real)).unsqueeze(1).expand({N, D, N / 2});
  return real_view((*this)(at::zeros({N, D}, real), unit)).permute({1, 2, 0});
}

Tensor LowRankStep::input() const {
  const Tensor one = at::ones({1, B_.size(0)}, inner_.options());
  return real_view((*this)(one, at::zeros_like(B_).unsqueeze(0))).squeeze(0);
}

Tensor s4_kernel(const LowRankSystem& system, const Tensor& truncated, int64_t L) {
  const int64_t channels = truncated.size(0), rank = system.P.size(0), D = system.A.size(0), F = L / 2 + 1;
  const Tensor angle = at::arange(F, system.dt.options()) * (-2 * M_PI / static_cast<double>(L));
  const Tensor omega = at::polar(at::ones_like(angle), angle), g = (1 + omega) / 2;
  const auto poles = [&](const Tensor& A) {  // 1 / (1 - omega - g dt A), [D, N/2, F]
    return (1 - omega - g * (system.dt * A).unsqueeze(2)).reciprocal();
  };
  const Tensor left = at::cat({truncated, system.P.conj()}).transpose(0, 1).unsqueeze(2);
  const Tensor right = (system.dt * at::cat({system.B.unsqueeze(0), system.P})).transpose(0, 1).unsqueeze(1);
  const Tensor v = (left * right).flatten(1, 2);  // [D, (channels + rank) (1 + rank), N/2]
  const Tensor sums = (at::bmm(v, poles(system.A)) + at::bmm(v.conj(), poles(system.A.conj())))
                          .view({D, channels + rank, 1 + rank, F})
                          .permute({0, 3, 1, 2});  // [D, F, channels + rank, 1 + rank]
  const Tensor of_C = sums.slice(2, 0, channels), of_P = sums.slice(2, channels);
  const Tensor each = g.view({F, 1, 1});
  const Tensor inner = at::eye(rank, system.dt.options()) + each * of_P.slice(3, 1);
  const Tensor K =
      of_C.slice(3, 0, 1) - each * at::matmul(of_C.slice(3, 1), at::linalg_solve(inner, of_P.slice(3, 0, 1)));
  return at::fft_irfft(K.squeeze(3).permute({2, 0, 1}), L);
}

Tensor s4_truncate(const LowRankSystem& system, const Tensor& C, int64_t L) {
  return truncate(C, squares(LowRankStep(system).matrix(), L), L);
}

LowRankStateSpace::LowRankStateSpace(LowRankSystem system, Tensor C)
    : system_(std::move(system)), C_(std::move(C)), step_(system_) {}

std::pair<Tensor, Tensor> LowRankStateSpace::step(const Tensor& u, const Tensor& x) const {
  const Tensor next = step_(u, x);
  return {2 * at::real(C_ * next).sum(2), next};
}

std::shared_ptr<const StateSpace::Pieces> LowRankStateSpace::make_pieces(int64_t L, at::ScalarType type) const {
  return std::make_shared<LowRankPieces>(system_, step_, C_, L, type);
}

namespace {

struct S4Config : StateSpaceConfig {
  std::string init = "legs";
  int64_t rank = 1;

  std::vector<Field> fields() override {
    auto list = StateSpaceConfig::fields();
    list.push_back({"init", &init, one_of(measure_names()), "the HiPPO measure that A and B start with"});
    list.push_back({"rank", &rank, between(1, 64), "of the low-rank part; legt needs 2"});
    return list;
  }
  void validate(const std::string& who) override {
    StateSpaceConfig::validate(who);
    if (init == "legt" && rank < 2) fail(who, ": rank is ", rank, ", init legt needs at least 2");
  }
};

class S4Kernel : public StateSpaceKernel {
 public:
  S4Kernel(const S4Config& config, int64_t D, int64_t directions)
      : StateSpaceKernel(config, D, directions), config_(config) {
    P_ = register_parameter("P", at::empty({config.rank, D, config.state_size / 2, 2}));
  }

  std::vector<std::shared_ptr<StateSpace>> systems() const override {
    const LowRankSystem system{A(), B(), complex_of(P_), dt()};
    std::vector<std::shared_ptr<StateSpace>> list;
    for (const Tensor& one : C().unbind(0)) list.push_back(std::make_shared<LowRankStateSpace>(system, one));
    return list;
  }
  void reset_parameters() override {
    at::NoGradGuard no_grad;
    const auto form = normal_plus_low_rank(measure_of(config_.init), config_.state_size, config_.rank);
    reset(form.w, clipped(form.B));
    P_.copy_(at::view_as_real(form.P.resolve_conj()).unsqueeze(1).expand_as(P_));
  }

 private:
  S4Config config_;
  Tensor P_;
};

std::shared_ptr<Mixer> make_s4(const std::string& name, const Config& config, int64_t D, int64_t directions) {
  const auto& told = dynamic_cast<const S4Config&>(config);
  return std::make_shared<StateSpaceLayer>(name, told, D, std::make_shared<S4Kernel>(told, D, directions));
}

}  // namespace

extern const MixerSpec s4_spec;
const MixerSpec s4_spec = {
    .name = "s4",
    .help = "state space of a normal and a low-rank matrix, a long convolution (S4, 2022)",
    .config = make_config<S4Config>,
    .make = [](const Config& config, int64_t D) { return make_s4("s4", config, D, 1); },
};

extern const MixerSpec s4_bidirectional_spec;
const MixerSpec s4_bidirectional_spec = {
    .name = "s4_bidirectional",
    .help = "the same, and a second one from each document's end (S4, 2022)",
    .causal = false,
    .config = make_config<S4Config>,
    .make = [](const Config& config, int64_t D) { return make_s4("s4_bidirectional", config, D, 2); },
};

}  // namespace lineal
