// The part of a block after its mixer: each token on its own, or beside the token before.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "core/rows.h"
#include "core/segments.h"
#include "core/state.h"
#include "mixers/linear.h"

namespace lineal {

/// silu(gate) * up, both [..., F]: `kernels::swiglu`, or its reference.
Tensor swiglu(const Tensor& gate, const Tensor& up);

class FeedForward : public torch::nn::Module {
 public:
  /// Without parts for a layer that reads each token on its own.
  virtual State initial_state(int64_t B) const;
  /// x [B, T, D] -> [B, T, D], as Mixer::forward; with rows as Mixer::step.
  virtual Tensor forward(const Tensor& x, State& state, const Segments& segments, const Rows* rows) = 0;
  virtual void reset_parameters(double deviation) = 0;
};

struct FeedForwardConfig {
  std::string name;        // of feed_forward_names()
  int64_t D, F;            // the model's width and its own
  std::string activation;  // of activation_names()
  bool bias;
};

/// "swiglu", "mlp", "channel_mix".
std::vector<std::string> feed_forward_names();
/// "silu", "gelu", "gelu_tanh", "relu".
std::vector<std::string> activation_names();

/// Throws Error for a name it does not know, and for an activation or bias that the layer has no place for.
std::shared_ptr<FeedForward> make_feed_forward(const FeedForwardConfig& config);

}  // namespace lineal
