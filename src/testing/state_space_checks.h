// What the tests of S4 and S4D share.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "mixers/mixer.h"
#include "mixers/state_space.h"
#include "testing/testing.h"

namespace lineal {

inline Tensor complex_in(const Golden& golden, const std::string& name) {
  return at::complex(golden[name + "_re"].to(at::kDouble), golden[name + "_im"].to(at::kDouble));
}

/// A golden's stored leaf, float64 and requiring a gradient.
inline Tensor leaf_of(const Golden& golden, const std::string& name) {
  return golden[name].to(at::kDouble).clone().requires_grad_();
}

/// u, y [B, D, T] and the state after the last token: by steps, by pieces of several lengths, by both in turn.
inline void expect_reads(const StateSpace& system, const Tensor& u, const Tensor& y, const Tensor& state) {
  const Tensor tokens = u.to(at::kDouble).transpose(1, 2);
  const Tensor start = at::zeros({u.size(0), u.size(1), state.size(2), 2}, at::kDouble), last = at::view_as_real(state);
  Tensor x = start;
  EXPECT_CLOSE(state_space_steps(system, tokens, x, {}).transpose(1, 2), y, 1e-10);
  EXPECT_CLOSE(x, last, 1e-10);
  for (const int64_t chunk_size : {5, 16, 1024}) {
    x = start;
    EXPECT_CLOSE(state_space_pieces(system, tokens, x, chunk_size, {}).transpose(1, 2), y, 1e-10) << chunk_size;
    EXPECT_CLOSE(x, last, 1e-10) << chunk_size;
  }
}

/// Pieces equal steps, whatever documents there are.
inline void expect_documents(const StateSpace& system, int64_t D, int64_t N) {
  const int64_t B = 3, T = 83;
  const Tensor u = normal({B, T, D}, 1, at::kDouble), start = normal({B, D, N / 2, 2}, 2, at::kDouble);
  for (const double often : {0.02, 0.1, 0.5, 1.0}) {
    const Segments documents{normal({B, T}, 3, at::kDouble).abs() < 1.5 * often};
    for (const int64_t chunk_size : {7, 64}) {
      Tensor x = start, expected_x = start;
      const Tensor expected = state_space_steps(system, u, expected_x, documents);
      EXPECT_CLOSE(state_space_pieces(system, u, x, chunk_size, documents), expected, 1e-11) << often;
      EXPECT_CLOSE(x, expected_x, 1e-11) << often;
    }
  }
}

/// 16384 tokens in one call and one by one, float32 throughout, channels of the longest memory among them. They hear
/// slow waves at frequencies of S4D-Lin, to which states of order 1 resonate: a step that is off by one part in 2^24
/// drifts by 1e-4 over the 2000 tokens that they remember.
inline void expect_long_agreement(const std::string& name) {
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  const int64_t D = 6, T = 16384;
  const double dt = 1e-3;
  const auto mixer = make_mixer(name, Json::object(), D);
  auto weights = mixer->named_parameters();
  weights["kernel.inv_dt"].slice(0, 0, 2).fill_(std::log(dt));
  weights["kernel.inv_dt"].slice(0, 2, 3).fill_(std::log(1e-1));
  weights["output_linear.weight"].normal_(0, 1);
  weights["D"].zero_();
  const Tensor angle = at::arange(T, at::kDouble).mul_(dt * M_PI).view({1, T, 1});
  const Tensor waves = (1 + angle.cos() + (5 * angle).cos() + (20 * angle).cos()).to(at::kFloat);
  const Tensor x = waves + 0.1 * normal({1, T, D}, 1);
  State whole = mixer->initial_state(1), one = whole;
  const Tensor y = mixer->forward(x, whole);
  std::vector<Tensor> single;
  for (int64_t t = 0; t < T; ++t) single.push_back(mixer->forward(x.slice(1, t, t + 1), one));
  EXPECT_CLOSE(at::cat(single, 1), y, 1e-5);
  EXPECT_CLOSE(one["ssm"], whole["ssm"], 1e-5);
}

/// The layer: GLU(W gelu(y + D x) + b), y from K [directions, D, T] within each document: of the past and, one token
/// later, of the future.
inline Tensor plain_state_space_layer(Mixer& mixer, const Tensor& K, const Tensor& x, const Tensor& starts) {
  const auto weights = mixer.named_parameters();
  const Tensor document = starts.to(at::kLong).cumsum(1);
  Tensor y = weights["D"] * x;
  const int64_t T = x.size(1);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t j = 0; j < T; ++j) {
      if (j > t && K.size(0) < 2) continue;
      const Tensor k = j <= t ? K[0].select(1, t - j) : K[1].select(1, j - t - 1);  // [D]
      y.select(1, t) += (document.select(1, t) == document.select(1, j)).unsqueeze(1) * k * x.select(1, j);
    }
  }
  const Tensor z = at::linear(at::gelu(y), weights["output_linear.weight"], weights["output_linear.bias"]);
  const auto halves = z.chunk(2, 2);
  return halves[0] * halves[1].sigmoid();
}

}  // namespace lineal
