// One layer of a model: x + conv(norm(x)); x + mix(norm(x)); x + ffn(norm(x)). In parallel the last two read the same
// x.
#pragma once

#include "backbones/feed_forward.h"
#include "backbones/layer_plan.h"
#include "mixers/mixer.h"
#include "mixers/norm.h"
#include "mixers/short_conv.h"

namespace lineal {

struct BlockConfig {
  int64_t hidden_size, intermediate_size;  // intermediate_size 0: no feed-forward part
  std::string norm;                        // of norm_names()
  double eps;
  bool pre_conv;
  int64_t conv_kernel;
  std::string ffn, activation;  // of feed_forward_names(), activation_names()
  bool ffn_bias;
  bool parallel_residual;  // x + mix(norm(x)) + ffn(norm(x))
};

class Block : public torch::nn::Module {
 public:
  /// Parameters hold anything until they are loaded or reset.
  Block(const BlockConfig& config, const Layer& layer);

  /// Child `mixer`, with pre_conv the part `conv` [B, conv_kernel - 1, D], and child `ffn` where that has a state.
  State initial_state(int64_t B) const;
  /// x [B, T, D] -> [B, T, D].
  Tensor forward(const Tensor& x, State& state, const Segments& segments);
  /// x [B, 1, D] -> [B, 1, D], as Mixer::step.
  Tensor step(const Tensor& x, State& pool, const Rows& rows);
  void reset_parameters(double deviation);
  Mixer& mixer() { return *mixer_; }

 private:
  Tensor run(const Tensor& x, State& state, const Segments& segments, const Rows* rows);

  bool parallel_;
  std::shared_ptr<Norm> conv_norm_, seq_norm_, ffn_norm_;
  std::shared_ptr<ShortConv> conv_;
  std::shared_ptr<Mixer> mixer_;
  std::shared_ptr<FeedForward> mlp_;
};

}  // namespace lineal
