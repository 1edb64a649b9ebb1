// AdamW.                                   (Decoupled Weight Decay Regularization, Loshchilov & Hutter, 2019, algorithm
// 2)
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   p = p - lr weight_decay p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/safetensors.h"
#include "mixers/mixer.h"
#include "train/train_config.h"

namespace lineal {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Whether weight decay applies: to matrices that map activations. Not to parameters of one dimension, norms, biases,
/// nor to initial states and rates, known by the last part of their name: W1 b1 W2 b2 ..., A_log, D, dt_bias,
/// learnable_token_idx, learnable_ttt_lr_*.
bool decays(const std::string& name, const Tensor& parameter);

/// "pattern=factor, pattern=factor" -> the factor of each name; in patterns * stands for any characters, the last that
/// fits counts. A pattern that fits no name is an Error.
std::vector<double> lr_factors(const std::string& rules, const std::vector<std::string>& names);

class AdamW {
 public:
  /// Takes beta1, beta2, eps, weight_decay and lr_scale from `config`. A parameter with a pace steps by at most its
  /// highest_lr, and its `decays` takes the place of the rule above.
  AdamW(NamedTensors parameters, const TrainConfig& config, const std::map<std::string, Mixer::Pace>& paces = {});

  void zero_grad();
  /// The norm of all gradients together; scales them down to `most` when above it and most > 0.
  double clip(double most);
  /// Parameters without a gradient stay as they are.
  void step(double lr);
  /// The first parameter whose gradient is not finite, or "".
  std::string first_bad_gradient() const;
  const NamedTensors& parameters() const { return parameters_; }

  /// "exp_avg.NAME", "exp_avg_sq.NAME" like the parameter, "step.NAME" float32 [].
  NamedTensors state() const;
  /// Throws Error naming `who` and the tensor for one that is missing or of another shape or type.
  void load_state(const SafeTensors& file, const std::string& prefix, const std::string& who);

 private:
  NamedTensors parameters_;
  std::vector<Tensor> exp_avg_, exp_avg_sq_, steps_;
  std::vector<double> factors_, highest_, decay_;
  double beta1_, beta2_, eps_;
};

}  // namespace lineal
