// Raw form of the TTT kernels: pointers to contiguous tensors, one call for all rows and heads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/state_part.h"

namespace lineal::kernels::cpu {

/// Tokens of one row that belong to one inner batch: `count` of them from `first`, at `place` in their inner batch.
struct InnerBlock {
  int64_t first, count, place;
  bool restart;   // they begin a document: W_0, no steps
  bool complete;  // they end their inner batch: W takes its step
};

/// q, k, v, o or a gradient of theirs, [B, T, H, K], float32 or bfloat16. Void: void or const void.
template <class Void>
struct Tokens {
  Void* data = nullptr;
  bool bfloat16 = false;
};

/// Weights of the inner model's layers, or sums of steps on them, or gradients of either. TTT-Linear has one layer,
/// W [..., K, K] and b [..., K]; TTT-MLP two, [..., K, 4K] and [..., 4K], [..., 4K, K] and [..., K]. b is null without
/// biases.
template <class Float>
struct Layer {
  Float* W = nullptr;
  Float* b = nullptr;
};
template <class Float>
using Layers = std::array<Layer<Float>, 2>;

/// One call; letters as in mixers/ttt.h.
struct TTTCall {
  int64_t B, T, H, K;
  int64_t C;  // tokens of an inner batch
  bool residual, norm, bias;
  std::vector<std::vector<InnerBlock>> blocks;  // of each row
  int64_t keep;                                 // blocks to one state saved for the backward pass
  int64_t state_size;                           // floats of one such state
  Tokens<const void> q, k, v;                   // [B, T, H, K]
  const float* eta;                             // [B, T, H]
  const float* scale;                           // [C]
  const float *gamma, *beta;                    // [H, K], null without norm
  Layers<const float> initial;                  // [H, ...]
  Layers<const float> W, D;                     // [B, H, ...], before the call
  // What the backward pass needs, or null. Of the norms of f(k) and of f(q):
  float *k_normal = nullptr, *q_normal = nullptr;  // [B, T, H, K]; without norm f(k) itself, and nothing
  float *k_rstd = nullptr, *q_rstd = nullptr;      // [B, T, H]
  float* U = nullptr;                              // [B, H, T, TTTKernel::hidden(K)], of TTT-MLP: k W1 with its bias
  float* states = nullptr;                         // W at every keep-th block, `state_size` numbers each

  /// States saved for one head of row b.
  int64_t saved(int64_t b) const {
    return (static_cast<int64_t>(blocks[static_cast<size_t>(b)].size()) + keep - 1) / keep;
  }
  /// Where the states of a row and head begin in `states`, index = b * H + h; of B * H: the size of all.
  int64_t saved_before(int64_t index) const {
    int64_t count = 0;
    for (int64_t b = 0; b < index / H; ++b) count += H * saved(b);
    if (index < B * H) count += index % H * saved(index / H);
    return count * state_size;
  }
};

struct TTTResult {
  Tokens<void> o;                // [B, T, H, K]
  Layers<float> W, D;            // [B, H, ...], after the call
  double* inner_loss = nullptr;  // [B, H, 2], or null: sums over tokens before and after their inner batch's step
};

/// Gradients of the results, and of the inputs; those of `initial` are per row, [B, H, ...], to be summed. D's are
/// zero on entry.
struct TTTGradients {
  Tokens<const void> o;
  Layers<const float> W_after, D_after;
  Tokens<void> q, k, v;
  float* eta;
  float* scale;         // [B, H, C]
  float *gamma, *beta;  // [B, H, K]
  Layers<float> initial, W, D;
};

/// What a step of one token a row changes beside giving o [B, 1, H, K]: the weights of each layer and their sums,
/// [P, H, ...].
struct TTTStep {
  struct Part {
    StatePart W, b;
  };
  using Parts = std::array<Part, 2>;

  const int64_t* position;  // [B], of the token in its document: 0 starts from W_0
  Parts W, D;
  Tokens<void> o;
};

/// The kernels of one inner model.
struct TTTKernel {
  const char* name;
  size_t layers;
  int64_t keep;  // TTTCall::keep that is fastest
  int64_t (*state_size)(int64_t K);
  int64_t (*hidden)(int64_t K);  // floats of a token of TTTCall::U
  void (*forward)(const TTTCall& call, const TTTResult& result);
  /// Without what the backward pass needs; the call's T is 1, and it has no blocks.
  void (*step)(const TTTCall& call, const TTTStep& step);
  void (*backward)(const TTTCall& call, const TTTGradients& gradients);
};
extern const TTTKernel ttt_linear, ttt_mlp;

void ttt_linear_step(const TTTCall& call, const TTTStep& step);
void ttt_mlp_step(const TTTCall& call, const TTTStep& step);

/// The tanh form of gelu of x [n] with its first two derivatives, as TTT-MLP computes them.
void gelu(const float* x, int64_t n, float* value, float* slope, float* curvature);

}  // namespace lineal::kernels::cpu
