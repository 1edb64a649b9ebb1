// A causal depthwise convolution over the last few tokens, with its state.        (H3, 2022; Mamba, 2023)
//   output   y_t = bias + sum_j w_j x_{t-J+1+j},  j = 0..J-1; zeros before the document's first token
//   state    the last J-1 inputs                                                   [B, J-1, D]
#pragma once

#include <torch/nn/module.h>

#include "core/segments.h"
#include "core/state.h"
#include "kernels/kernels.h"

namespace lineal {

/// What follows the convolution.
enum class Activation { none, silu };

/// weight [D, 1, J], bias [D] (the field's layout); without a bias that is not a parameter.
class ShortConv : public torch::nn::Module {
 public:
  ShortConv(int64_t D, int64_t width, bool with_bias = true);
  /// [B, J-1, D] of zeros.
  Tensor initial_state(int64_t B, at::TensorOptions options) const;
  /// x [B, T, D], window [B, J-1, D] (becomes the last J-1 inputs) -> y [B, T, D]. With rows, window is a pool's, whose
  /// rows change in place, and T is 1.
  Tensor forward(const Tensor& x, Tensor& window, const Segments& segments, Activation activation = Activation::none,
                 const Rows* rows = nullptr);
  void reset_parameters();

  Tensor weight, bias;
};

/// The definition, and what runs where there is no kernel.
kernels::ConvOutput short_conv_reference(const kernels::ConvInput& in);

}  // namespace lineal
