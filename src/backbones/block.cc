#include "backbones/block.h"

#include <ATen/ATen.h>

namespace lineal {

Block::Block(const BlockConfig& config, const Layer& layer) : parallel_(config.parallel_residual) {
  const int64_t D = config.hidden_size;
  const auto norm = [&] { return make_norm(config.norm, D, config.eps); };
  if (config.pre_conv) {
    auto conv = register_module("conv", std::make_shared<torch::nn::Module>("conv"));
    conv_norm_ = conv->register_module("norm", norm());
    conv_ = conv->register_module("conv", std::make_shared<ShortConv>(D, config.conv_kernel));
  }
  seq_norm_ = register_module("seq_norm", norm());
  mixer_ = register_module("seq_modeling_block", empty_mixer(layer.mixer, layer.options, D));
  if (config.intermediate_size > 0) {
    ffn_norm_ = register_module("ffn_norm", norm());
    mlp_ = register_module(
        "mlp", make_feed_forward({config.ffn, D, config.intermediate_size, config.activation, config.ffn_bias}));
  }
}

State Block::initial_state(int64_t B) const {
  State state;
  if (conv_) state["conv"] = conv_->initial_state(B, state_options(*this));
  state.child("mixer") = mixer_->initial_state(B);
  if (mlp_) {
    if (State own = mlp_->initial_state(B); own.first_part()) state.child("ffn") = own;
  }
  return state;
}

Tensor Block::forward(const Tensor& x, State& state, const Segments& segments) {
  return run(x, state, segments, nullptr);
}

Tensor Block::step(const Tensor& x, State& pool, const Rows& rows) { return run(x, pool, {}, &rows); }

Tensor Block::run(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
  Tensor y = x;
  if (conv_) y = y + conv_->forward(conv_norm_->forward(y), state["conv"], segments, Activation::none, rows);
  State& own = state.child("mixer");
  const Tensor normed_y = seq_norm_->forward(y);
  const Tensor mixed = rows ? mixer_->step(normed_y, own, *rows) : mixer_->forward(normed_y, own, segments);
  if (!mlp_) return y + mixed;
  State none;
  State& of_ffn = state.has_child("ffn") ? state.child("ffn") : none;
  if (parallel_) return y + mixed + mlp_->forward(ffn_norm_->forward(y), of_ffn, segments, rows);
  const auto [normed, sum] = ffn_norm_->add(y, mixed);
  return sum + mlp_->forward(normed, of_ffn, segments, rows);
}

void Block::reset_parameters(double deviation) {
  if (conv_) conv_norm_->reset_parameters(), conv_->reset_parameters();
  seq_norm_->reset_parameters();
  mixer_->reset_parameters(deviation);
  if (mlp_) ffn_norm_->reset_parameters(), mlp_->reset_parameters(deviation);
}

}  // namespace lineal
