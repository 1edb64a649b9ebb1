// The layer around a state space: y = GLU(W gelu(conv(x) + D x) + b).        (S4, 2022, as its public implementation)
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mixers/hippo.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/state_space.h"

namespace lineal {

/// What S4 and S4D are both told.
struct StateSpaceConfig : Config {
  int64_t state_size = 64;
  double dt_min = 1e-3;
  double dt_max = 1e-1;
  double lr = 1e-3;
  int64_t chunk_size = 256;

  std::vector<Field> fields() override;
  void validate(const std::string& who) override;
};

/// Parameters of the system, `kernel.` before their names:
///   inv_dt [D, 1]            dt = exp(inv_dt)
///   A_real, A_imag [D, N/2]  A = -exp(A_real) - i A_imag
///   B [D, N/2, 2], C [directions, D, N/2, 2], real and imaginary parts
/// A derived class adds its own and makes the systems of them.
class StateSpaceKernel : public torch::nn::Module {
 public:
  StateSpaceKernel(const StateSpaceConfig& config, int64_t D, int64_t directions);
  Tensor dt() const;  // float64 [D, 1]
  Tensor A() const;   // complex128 [D, N/2]
  Tensor B() const;   // complex128 [D, N/2]
  Tensor C() const;   // complex128 [directions, D, N/2]
  /// One of each direction.
  virtual std::vector<std::shared_ptr<StateSpace>> systems() const = 0;
  virtual void reset_parameters() = 0;

 protected:
  /// dt log-uniform in [dt_min, dt_max], every channel A and B [N/2], C complex normal.
  void reset(const Tensor& A, const Tensor& B);

  double dt_min_, dt_max_;
  Tensor inv_dt_, A_real_, A_imag_, B_, C_;
};

/// float or double [..., 2] -> complex128 [...].
Tensor complex_of(const Tensor& parts);

/// A mixer's state is `ssm` [B, D, N/2, 2], and `position` [B], tokens of the document read. Two directions: the second
/// system reads each document of the call from its last token back, and y_t gets what it makes of the tokens after t.
class StateSpaceLayer : public Mixer {
 public:
  StateSpaceLayer(std::string who, const StateSpaceConfig& config, int64_t D, std::shared_ptr<StateSpaceKernel> kernel);
  State initial_state(int64_t B) const override;
  Tensor forward(const Tensor& x, State& state, const Segments& segments) override;
  void reset_parameters(double deviation) override;
  /// A, B, P and dt: at most `lr`, no weight decay.
  std::optional<Pace> pace(const std::string& parameter) const override;

 private:
  Tensor ahead(const StateSpace& system, const Tensor& u, const Segments& segments) const;
  std::vector<std::shared_ptr<StateSpace>> systems();

  std::string who_;
  StateSpaceConfig config_;
  int64_t D_;
  std::shared_ptr<StateSpaceKernel> kernel_;
  Tensor skip_;
  LinearMap output_linear_{nullptr};
  std::vector<std::shared_ptr<StateSpace>> systems_;  // with gradients off, while the parameters stay
  std::vector<std::pair<Tensor, int64_t>> made_of_;
};

}  // namespace lineal
