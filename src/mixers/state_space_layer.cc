#include "mixers/state_space_layer.h"

#include <cmath>

#include "core/error.h"

namespace lineal {
namespace {

Tensor parts_of(const Tensor& x) { return at::view_as_real(x.resolve_conj()); }

}  // namespace

std::vector<Field> StateSpaceConfig::fields() {
  return {
      {"state_size", &state_size, between(2, 4096), "numbers remembered per channel; even"},
      {"dt_min", &dt_min, between(1e-8, 1e3), "least step a channel starts with"},
      {"dt_max", &dt_max, between(1e-8, 1e3), "largest step a channel starts with"},
      {"lr", &lr, between(0, 1), "the highest learning rate of A, B and the step, which do not decay"},
      {"chunk_size", &chunk_size, size_range(), "tokens convolved at once; changes no result"},
  };
}

void StateSpaceConfig::validate(const std::string& who) {
  if (state_size % 2 != 0) fail(who, ": state_size is ", state_size, ", expected an even number");
  if (dt_min > dt_max) fail(who, ": dt_min is ", dt_min, ", expected at most dt_max ", dt_max);
}

Tensor complex_of(const Tensor& parts) { return at::view_as_complex(parts.to(at::kDouble).contiguous()); }

StateSpaceKernel::StateSpaceKernel(const StateSpaceConfig& config, int64_t D, int64_t directions)
    : dt_min_(config.dt_min), dt_max_(config.dt_max) {
  const int64_t half = config.state_size / 2;
  inv_dt_ = register_parameter("inv_dt", at::empty({D, 1}));
  A_real_ = register_parameter("A_real", at::empty({D, half}));
  A_imag_ = register_parameter("A_imag", at::empty({D, half}));
  B_ = register_parameter("B", at::empty({D, half, 2}));
  C_ = register_parameter("C", at::empty({directions, D, half, 2}));
}

Tensor StateSpaceKernel::dt() const { return inv_dt_.to(at::kDouble).exp(); }

Tensor StateSpaceKernel::A() const { return at::complex(-A_real_.to(at::kDouble).exp(), -A_imag_.to(at::kDouble)); }

Tensor StateSpaceKernel::B() const { return complex_of(B_); }

Tensor StateSpaceKernel::C() const { return complex_of(C_); }

void StateSpaceKernel::reset(const Tensor& A, const Tensor& B) {
  constexpr double kLeast = 1e-4;  // as the public implementation has it
  at::NoGradGuard no_grad;
  inv_dt_.uniform_(std::log(dt_min_), std::log(dt_max_));
  A_real_.copy_((-at::real(A)).clamp_min(kLeast).log().expand_as(A_real_));
  A_imag_.copy_((-at::imag(A)).clamp_min(kLeast).expand_as(A_imag_));
  B_.copy_(parts_of(B).expand_as(B_));
  C_.normal_(0, M_SQRT1_2);
}

StateSpaceLayer::StateSpaceLayer(std::string who, const StateSpaceConfig& config, int64_t D,
                                 std::shared_ptr<StateSpaceKernel> kernel)
    : who_(std::move(who)), config_(config), D_(D) {
  kernel_ = register_module("kernel", std::move(kernel));
  skip_ = register_parameter("D", at::empty({D}));
  output_linear_ = register_module("output_linear", linear(D, 2 * D, /*bias=*/true));
}

State StateSpaceLayer::initial_state(int64_t B) const {
  State state;
  state["ssm"] = at::zeros({B, D_, config_.state_size / 2, 2}, state_options());
  state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
  return state;
}

Tensor StateSpaceLayer::forward(const Tensor& x, State& state, const Segments& segments) {
  const Dims dims = check_input(who_.c_str(), x, state, D_);
  count(state, dims['T'], segments, nullptr);
  Tensor y;
  {
    const FullPrecision guard(x);
    const Tensor u = x.to(state_options().dtype().toScalarType());
    const auto made = systems();
    y = state_space(*made[0], u, state["ssm"], config_.chunk_size, segments) + skip_ * u;
    if (made.size() > 1) y = y + ahead(*made[1], u, segments);
    y = at::gelu(y);
  }
  return at::glu(output_linear_(y.to(x.scalar_type())), 2);
}

/// [B, T, D]: of the tokens after t in its document, the last one first.
Tensor StateSpaceLayer::ahead(const StateSpace& system, const Tensor& u, const Segments& segments) const {
  const int64_t B = u.size(0), T = u.size(1);
  Segments backwards;  // documents start where they end
  if (!segments.none()) {
    backwards.starts = at::constant_pad_nd(segments.starts.slice(1, 1), {0, 1}, 0).flip(1);
  }
  Tensor x = at::zeros({B, D_, config_.state_size / 2, 2}, u.options());
  const Tensor y = state_space(system, u.flip(1), x, config_.chunk_size, backwards);
  Tensor later = at::constant_pad_nd(y.slice(1, 0, T - 1), {0, 0, 1, 0});
  if (!backwards.none()) later = later.masked_fill(backwards.starts.unsqueeze(2), 0);
  return later.flip(1);
}

std::vector<std::shared_ptr<StateSpace>> StateSpaceLayer::systems() {
  if (at::GradMode::is_enabled()) return kernel_->systems();
  const auto parameters = kernel_->parameters();
  const auto same = [](const Tensor& parameter, const std::pair<Tensor, int64_t>& then) {
    return parameter.is_alias_of(then.first) && parameter.scalar_type() == then.first.scalar_type() &&
           parameter._version() == then.second;
  };
  if (!std::equal(parameters.begin(), parameters.end(), made_of_.begin(), made_of_.end(), same)) {
    systems_ = kernel_->systems();
    made_of_.clear();
    for (const Tensor& parameter : parameters) made_of_.emplace_back(parameter.detach(), parameter._version());
  }
  return systems_;
}

void StateSpaceLayer::reset_parameters(double deviation) {
  at::NoGradGuard no_grad;
  kernel_->reset_parameters();
  skip_.normal_();
  reset_linear(output_linear_, deviation);
  output_linear_->bias.zero_();
}

std::optional<Mixer::Pace> StateSpaceLayer::pace(const std::string& parameter) const {
  if (!parameter.starts_with("kernel.") || parameter == "kernel.C") return {};
  return Pace{config_.lr, false};
}

}  // namespace lineal
