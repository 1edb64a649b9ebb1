#include "mixers/short_conv.h"

#include <ATen/ATen.h>

#include <cmath>

namespace lineal {

ShortConv::ShortConv(int64_t D, int64_t width, bool with_bias) {
  weight = register_parameter("weight", at::empty({D, 1, width}));
  if (with_bias) bias = register_parameter("bias", at::empty({D}));
}

Tensor ShortConv::initial_state(int64_t B, at::TensorOptions options) const {
  return at::zeros({B, weight.size(2) - 1, weight.size(0)}, options);
}

Tensor ShortConv::forward(const Tensor& x, Tensor& window, const Segments& segments, Activation activation,
                          const Rows* rows) {
  auto out = kernels::use(kernels::short_conv, short_conv_reference,
                          {.x = x,
                           .weight = weight,
                           .bias = bias.defined() ? bias : at::zeros({weight.size(0)}, weight.options()),
                           .window = window,
                           .starts = segments.starts,
                           .silu = activation == Activation::silu,
                           .rows = rows});
  window = out.window;
  return out.y;
}

kernels::ConvOutput short_conv_reference(const kernels::ConvInput& in) {
  const int64_t B = in.x.size(0), T = in.x.size(1), D = in.x.size(2), J = in.weight.size(2);
  const Segments segments{in.starts};
  const Tensor padded = at::cat({in.window.to(in.x.scalar_type()), in.x}, 1);  // [B, J-1+T, D]
  Tensor y, window;
  if (segments.none()) {
    y = at::conv1d(padded.transpose(1, 2), in.weight, in.bias, at::IntArrayRef{1}, at::IntArrayRef{0},
                   at::IntArrayRef{1}, D)
            .transpose(1, 2);
    window = own_storage(padded.slice(1, T).to(in.window.scalar_type()));
  } else {
    const Tensor document = segments.documents(B, T, in.x.device());  // [B, T]
    const Tensor documents = at::cat({at::zeros({B, J - 1}, document.options()), document}, 1);
    y = in.bias.expand({B, T, D});
    for (int64_t j = 0; j < J; ++j) {
      const Tensor same = (documents.slice(1, j, j + T) == document).unsqueeze(-1);  // [B, T, 1]
      y = y + at::where(same, padded.slice(1, j, j + T), 0) * in.weight.select(2, j).squeeze(1);
    }
    const Tensor kept = (documents.slice(1, T) == document.slice(1, T - 1)).unsqueeze(-1);
    window = at::where(kept, padded.slice(1, T), 0).to(in.window.scalar_type());
  }
  return {(in.silu ? at::silu(y) : y).to(in.x.scalar_type()), window};
}

void ShortConv::reset_parameters() {
  at::NoGradGuard no_grad;
  const double bound = 1 / std::sqrt(static_cast<double>(weight.size(2)));
  weight.uniform_(-bound, bound);
  if (bias.defined()) bias.uniform_(-bound, bound);
}

}  // namespace lineal
