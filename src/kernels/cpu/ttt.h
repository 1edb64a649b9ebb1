// Raw form of the TTT kernels: pointers to contiguous float32 tensors, one call for all rows and heads.
#pragma once

#include <cstdint>
#include <vector>

namespace lineal::kernels::cpu {

/// Tokens of one row that belong to one inner batch: `count` of them from `first`, at `place` in their inner batch.
struct InnerBlock {
  int64_t first, count, place;
  bool restart;   // they begin a document: W_0, no steps
  bool complete;  // they end their inner batch: W takes its step
};

/// The inner model's weights, or sums of steps on them, or gradients of either. b is null without biases.
template <class Float>
struct Linear {
  Float* W = nullptr;  // [..., K, K]
  Float* b = nullptr;  // [..., K]
};

/// One call of TTT-Linear; letters as in mixers/ttt.h.
struct TTTLinearCall {
  int64_t B, T, H, K;
  int64_t C;  // tokens of an inner batch
  bool residual, norm;
  std::vector<std::vector<InnerBlock>> blocks;  // of each row
  int64_t keep = 1;                             // blocks to one state saved for the backward pass
  const float *q, *k, *v;                       // [B, T, H, K]
  const float* eta;                             // [B, T, H]
  const float* scale;                           // [C]
  const float *gamma, *beta;                    // [H, K], null without norm
  Linear<const float> initial;                  // [H, ...]
  Linear<const float> W, D;                     // [B, H, ...], before the call
  // What the backward pass needs, or null. Of the norms of f(k) and of f(q):
  float *k_normal = nullptr, *q_normal = nullptr;  // [B, T, H, K]; without norm f(k) itself, and nothing
  float *k_rstd = nullptr, *q_rstd = nullptr;      // [B, T, H]
  float* states = nullptr;                         // W at every keep-th block, `state_size` numbers each

  bool bias() const { return W.b != nullptr; }
  /// States saved for one head of row b.
  int64_t saved(int64_t b) const {
    return (static_cast<int64_t>(blocks[static_cast<size_t>(b)].size()) + keep - 1) / keep;
  }
  int64_t state_size() const;
  /// Where the states of a row and head begin in `states`, index = b * H + h; of B * H: the size of all.
  int64_t saved_before(int64_t index) const;
};

struct TTTLinearResult {
  float* o;                      // [B, T, H, K]
  Linear<float> W, D;            // [B, H, ...], after the call
  double* inner_loss = nullptr;  // [B, H, 2], or null: sums over tokens before and after their inner batch's step
};

/// Gradients of the results, and of the inputs; those of `initial` are per row, [B, H, ...], to be summed.
struct TTTLinearGradients {
  const float* o;
  Linear<const float> W_after, D_after;
  float *q, *k, *v, *eta;
  float* scale;         // [B, H, C]
  float *gamma, *beta;  // [B, H, K]
  Linear<float> initial, W, D;
};

void ttt_linear_forward(const TTTLinearCall& call, const TTTLinearResult& result);
void ttt_linear_backward(const TTTLinearCall& call, const TTTLinearGradients& gradients);

}  // namespace lineal::kernels::cpu
