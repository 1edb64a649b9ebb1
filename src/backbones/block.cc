#include "backbones/block.h"

#include <ATen/ATen.h>

#include "kernels/kernels.h"
#include "mixers/linear.h"

namespace lineal {

SwiGlu::SwiGlu(int64_t D, int64_t width) {
  gate_proj_ = register_module("gate_proj", linear(D, width));
  up_proj_ = register_module("up_proj", linear(D, width));
  down_proj_ = register_module("down_proj", linear(width, D));
}

Tensor SwiGlu::forward(const Tensor& x) {
  const auto reference = [](const Tensor& gate, const Tensor& up) { return at::silu(gate) * up; };
  return down_proj_(kernels::use(kernels::swiglu, reference, gate_proj_(x), up_proj_(x)));
}

void SwiGlu::reset_parameters(double deviation) {
  for (auto* map : {&gate_proj_, &up_proj_, &down_proj_}) reset_linear(*map, deviation);
}

Block::Block(const BlockConfig& config, const Layer& layer) {
  const int64_t D = config.hidden_size;
  const double eps = config.rms_norm_eps;
  if (config.pre_conv) {
    auto conv = register_module("conv", std::make_shared<torch::nn::Module>("conv"));
    conv_norm_ = conv->register_module("norm", std::make_shared<RmsNorm>(D, eps));
    conv_ = conv->register_module("conv", std::make_shared<ShortConv>(D, config.conv_kernel));
  }
  seq_norm_ = register_module("seq_norm", std::make_shared<RmsNorm>(D, eps));
  mixer_ = register_module("seq_modeling_block", empty_mixer(layer.mixer, layer.options, D));
  if (config.intermediate_size > 0) {
    ffn_norm_ = register_module("ffn_norm", std::make_shared<RmsNorm>(D, eps));
    mlp_ = register_module("mlp", std::make_shared<SwiGlu>(D, config.intermediate_size));
  }
}

State Block::initial_state(int64_t B) const {
  State state;
  if (conv_) state["conv"] = conv_->initial_state(B, state_options(*this));
  state.child("mixer") = mixer_->initial_state(B);
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
  const auto [normed, sum] = ffn_norm_->add(y, mixed);
  return sum + mlp_->forward(normed);
}

void Block::reset_parameters(double deviation) {
  if (conv_) conv_norm_->reset_parameters(), conv_->reset_parameters();
  seq_norm_->reset_parameters();
  mixer_->reset_parameters(deviation);
  if (mlp_) ffn_norm_->reset_parameters(), mlp_->reset_parameters(deviation);
}

}  // namespace lineal
