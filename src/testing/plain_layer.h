// Parts of layers written once more, plainly, for tests that hold a mixer to its formulas.
#pragma once

#include <ATen/ATen.h>

#include "mixers/mixer.h"
#include "testing/testing.h"

namespace lineal {

using NamedWeights = torch::OrderedDict<std::string, Tensor>;

/// A mixer in float64 whose parameters are N(0, 0.5^2), each its own.
inline std::shared_ptr<Mixer> random_mixer(const std::string& name, const Json& options, int64_t D) {
  at::NoGradGuard no_grad;
  const auto mixer = make_mixer(name, options, D);
  mixer->to(at::kDouble);
  uint64_t seed = 2;
  for (Tensor& parameter : mixer->parameters()) parameter.copy_(0.5 * normal(parameter.sizes(), seed++, at::kDouble));
  return mixer;
}

/// x [B, T, D] from nothing read -> y [B, T, D].
inline Tensor read_all(Mixer& mixer, const Tensor& x) {
  State state = mixer.initial_state(x.size(0));
  return mixer.forward(x, state);
}

inline Tensor plain_silu(const Tensor& x) { return x / (1 + x.neg().exp()); }

/// sum_j w_j x_{t-J+1+j} + bias with w [D, 1, J], zeros before the first token; x [B, T, D].
inline Tensor plain_conv(const Tensor& x, const Tensor& w, const Tensor& bias) {
  Tensor sum = at::zeros_like(x) + bias;
  for (int64_t j = 0; j < w.size(2); ++j) {
    const int64_t back = w.size(2) - 1 - j;
    const Tensor zeros = at::zeros({x.size(0), back, x.size(2)}, x.options());
    sum = sum + at::cat({zeros, x.slice(1, 0, x.size(1) - back)}, 1) * w.select(2, j).squeeze(1);
  }
  return sum;
}

/// x [B, T, D] -> [B, T, H, K] by NAME_proj, and with `convolve` through NAME_conv1d and silu.
inline Tensor plain_view(const NamedWeights& weights, const std::string& name, const Tensor& x, int64_t H,
                         bool convolve) {
  Tensor y = at::linear(x, weights[name + "_proj.weight"]);
  if (convolve) {
    y = plain_silu(plain_conv(y, weights[name + "_conv1d.weight"], weights[name + "_conv1d.bias"]));
  }
  return y.unflatten(2, {H, -1});
}

/// o [B, T, H, V] -> y [B, T, D]: norm per head, with `gate` silu(W_g x), and o_proj.
inline Tensor plain_output(const NamedWeights& weights, const Tensor& o, const Tensor& x, bool gate) {
  Tensor y = (o / (o.square().mean(-1, true) + 1e-5).sqrt() * weights["o_norm.weight"]).flatten(2);
  if (gate) y = y * plain_silu(at::linear(x, weights["g_proj.weight"]));
  return at::linear(y, weights["o_proj.weight"]);
}

inline Tensor plain_unit(const Tensor& x) { return x / (x.square().sum(-1, true) + 1e-6).sqrt(); }

}  // namespace lineal
