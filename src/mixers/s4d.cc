// S4D: a diagonal state space.     (On the Parameterization and Initialization of Diagonal State Space Models, 2022)
//   initial  x_0 = 0                                               [N/2] complex, per channel
//   update   x_t = dA x_{t-1} + dB u_t
//   output   y_t = 2 Re(C . x_t) + D u_t; then GLU(W gelu(y) + b)
//   views    A = -exp(A_real) - i A_imag, dt = exp(inv_dt)
//            zoh       dA = exp(dt A),  dB = B (dA - 1) / A
//            bilinear  dA = (1 + dt A / 2) / (1 - dt A / 2),  dB = B dt / (1 - dt A / 2)
//   kernel   K_l = 2 Re(C . dA^l dB), a Vandermonde product
//   cost     O(T D (N + log C)) time for pieces of C tokens, D N state
#include "mixers/s4d.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "mixers/state_space_layer.h"

namespace lineal {
namespace {

class DiagonalPieces : public StateSpace::Pieces {
 public:
  DiagonalPieces(const DiagonalSystem& discrete, const Tensor& C, const Tensor& dA, int64_t L, at::ScalarType type)
      : L_(L), log_dA_(discrete.A) {
    const auto complex = at::toComplexType(type);
    powers_ = real_view(diagonal_powers(log_dA_, L, type)).transpose(1, 2);  // [D, N, L]
    dB_ = discrete.B.unsqueeze(1).to(complex);                               // [D, 1, N/2]
    through_ = (log_dA_ * L).exp().unsqueeze(1).to(complex);
    next_ = (C * dA).unsqueeze(1).to(complex);
    now_ = (C * discrete.B).unsqueeze(1).to(complex);
  }

  Tensor kernel() const override { return outputs(now_).squeeze(1); }
  Tensor respond(const Tensor& x) const override { return outputs(complex_view(x) * next_); }
  Tensor absorb(const Tensor& u) const override {
    return real_view(complex_view(at::bmm(u, powers_.transpose(1, 2))) * dB_);
  }
  Tensor advance(const Tensor& x, const Tensor& n) const override {
    const Tensor power = (log_dA_.unsqueeze(1) * n.view({-1, 1})).exp();  // [D, M, N/2]
    return real_view(complex_view(x) * power.to(dB_.scalar_type()));
  }
  Tensor advance(const Tensor& x) const override { return real_view(complex_view(x) * through_); }

 private:
  /// 2 Re(sum_n z_n dA_n^l) for z [D, M, N/2], as a product of real matrices.
  Tensor outputs(const Tensor& z) const { return at::bmm(real_view(2 * z.conj()), powers_); }

  int64_t L_;
  Tensor log_dA_, powers_, dB_, through_, next_, now_;
};

}  // namespace

DiagonalSystem discretize(const DiagonalSystem& system, const Tensor& dt, Discretization method) {
  const auto& [A, B] = system;
  if (method == Discretization::zoh) {
    const Tensor log_dA = dt * A;
    return {log_dA, B * (log_dA.exp() - 1) / A};
  }
  if (method != Discretization::bilinear) {
    fail("s4d: discretization is ", discretization_names()[static_cast<size_t>(method)], ", expected zoh or bilinear");
  }
  const Tensor half = dt * A / 2;
  return {(1 + half).log() - (1 - half).log(), B * dt / (1 - half)};
}

DiagonalStateSpace::DiagonalStateSpace(DiagonalSystem discrete, Tensor C)
    : discrete_(std::move(discrete)), C_(std::move(C)), dA_(discrete_.A.exp()) {}

std::pair<Tensor, Tensor> DiagonalStateSpace::step(const Tensor& u, const Tensor& x) const {
  const Tensor next = dA_ * x + discrete_.B * u.unsqueeze(2);
  return {2 * at::real(C_ * next).sum(2), next};
}

std::shared_ptr<const StateSpace::Pieces> DiagonalStateSpace::make_pieces(int64_t L, at::ScalarType type) const {
  return std::make_shared<DiagonalPieces>(discrete_, C_, dA_, L, type);
}

Tensor clipped(const Tensor& B) { return at::complex(at::real(B), at::imag(B).clamp(-2, 2)); }

DiagonalSystem s4d_initial(const std::string& init, int64_t N) {
  const Tensor n = at::arange(N / 2, at::kDouble), minus_half = at::full_like(n, -0.5);
  const Tensor ones = at::ones_like(at::complex(n, n));
  const auto width = static_cast<double>(N);
  if (init == "lin") return {at::complex(minus_half, -M_PI * n), ones};
  if (init == "inv") return {at::complex(minus_half, -width / M_PI * (width / (2 * n + 1) - 1)), ones};
  const NormalPlusLowRank form = normal_plus_low_rank(Measure::legs, N, 1);
  return {at::complex(minus_half, at::imag(form.w)), clipped(form.B)};
}

namespace {

struct S4DConfig : StateSpaceConfig {
  std::string init = "lin";
  std::string discretization = "zoh";

  std::vector<Field> fields() override {
    auto list = StateSpaceConfig::fields();
    list.push_back({"init", &init, one_of({"lin", "inv", "legs"}), "frequencies that A starts with"});
    list.push_back({"discretization", &discretization, one_of({"zoh", "bilinear"}), "how steps are made of A and B"});
    return list;
  }
};

class S4DKernel : public StateSpaceKernel {
 public:
  S4DKernel(const S4DConfig& config, int64_t D, int64_t directions)
      : StateSpaceKernel(config, D, directions), config_(config) {}

  std::vector<std::shared_ptr<StateSpace>> systems() const override {
    const DiagonalSystem discrete = discretize({A(), B()}, dt(), discretization_of(config_.discretization));
    std::vector<std::shared_ptr<StateSpace>> list;
    for (const Tensor& one : C().unbind(0)) list.push_back(std::make_shared<DiagonalStateSpace>(discrete, one));
    return list;
  }
  void reset_parameters() override {
    const auto [initial_A, initial_B] = s4d_initial(config_.init, config_.state_size);
    reset(initial_A, initial_B);
  }

 private:
  S4DConfig config_;
};

std::shared_ptr<Mixer> make_s4d(const std::string& name, const Config& config, int64_t D, int64_t directions) {
  const auto& told = dynamic_cast<const S4DConfig&>(config);
  return std::make_shared<StateSpaceLayer>(name, told, D, std::make_shared<S4DKernel>(told, D, directions));
}

}  // namespace

extern const MixerSpec s4d_spec;
const MixerSpec s4d_spec = {
    .name = "s4d",
    .help = "diagonal state space, a long convolution (S4D, 2022)",
    .config = make_config<S4DConfig>,
    .make = [](const Config& config, int64_t D) { return make_s4d("s4d", config, D, 1); },
};

extern const MixerSpec s4d_bidirectional_spec;
const MixerSpec s4d_bidirectional_spec = {
    .name = "s4d_bidirectional",
    .help = "the same, and a second one from each document's end (S4D, 2022)",
    .causal = false,
    .config = make_config<S4DConfig>,
    .make = [](const Config& config, int64_t D) { return make_s4d("s4d_bidirectional", config, D, 2); },
};

}  // namespace lineal
