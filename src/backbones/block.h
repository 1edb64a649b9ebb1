// One layer of a model: x + conv(norm(x)); x + mix(norm(x)); x + ffn(norm(x)).
#pragma once

#include "backbones/layer_plan.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/rms_norm.h"
#include "mixers/short_conv.h"

namespace lineal {

/// down(silu(gate(x)) * up(x)).                                  (GLU Variants Improve Transformer, 2020)
class SwiGlu : public torch::nn::Module {
 public:
  SwiGlu(int64_t D, int64_t width);
  Tensor forward(const Tensor& x);
  void reset_parameters(double deviation);

 private:
  LinearMap gate_proj_{nullptr}, up_proj_{nullptr}, down_proj_{nullptr};
};

struct BlockConfig {
  int64_t hidden_size, intermediate_size;  // intermediate_size 0: no feed-forward part
  double rms_norm_eps;
  bool pre_conv;
  int64_t conv_kernel;
};

class Block : public torch::nn::Module {
 public:
  /// Parameters hold anything until they are loaded or reset.
  Block(const BlockConfig& config, const Layer& layer);

  /// Child `mixer`, and with pre_conv the part `conv` [B, conv_kernel - 1, D].
  State initial_state(int64_t B) const;
  /// x [B, T, D] -> [B, T, D].
  Tensor forward(const Tensor& x, State& state, const Segments& segments);
  /// x [B, 1, D] -> [B, 1, D], as Mixer::step.
  Tensor step(const Tensor& x, State& pool, const Rows& rows);
  void reset_parameters(double deviation);
  Mixer& mixer() { return *mixer_; }

 private:
  Tensor run(const Tensor& x, State& state, const Segments& segments, const Rows* rows);

  std::shared_ptr<RmsNorm> conv_norm_, seq_norm_, ffn_norm_;
  std::shared_ptr<ShortConv> conv_;
  std::shared_ptr<Mixer> mixer_;
  std::shared_ptr<SwiGlu> mlp_;
};

}  // namespace lineal
