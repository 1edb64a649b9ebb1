// The gradient of a loss over a long context, segment by segment, in memory that does not grow with it.
//   forward  L_i, S_{i+1} = f(segment_i, S_i)                           L = sum_i count_i L_i / count
//   detached        dL = sum_i dL_i with S_i a constant
//   differentiable  from the last segment to the first: run f(segment_i, S_i) again, backward from L_i and from S_{i+1}
//                   with the gradient that segment i + 1 found for it; exact. Holds n + sqrt(n) states at most.
#pragma once

#include <functional>

#include "backbones/language_model.h"
#include "data/batch.h"
#include "objectives/objective.h"

namespace lineal {

/// bfloat16 matrix products for a scope, float32 parameters; nothing when off.
class Autocast {
 public:
  explicit Autocast(bool on);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool was_enabled_, was_cached_;
  at::ScalarType type_;
};

struct SegmentRun {
  int64_t length = 0;  // tokens per segment, at least 1
  bool differentiable = false;
  bool bfloat16 = false;
  /// Called when the loss of a segment is not finite, with its start state and first token's place in the batch.
  std::function<void(const Batch& segment, const State& start, int64_t from)> not_finite;
  /// Called after each segment's training forward.
  std::function<void()> observe;
};

/// Adds the gradient of (the sum of losses where mask is 1) / count to .grad of the player's parameters, starting from
/// model.initial_state; returns that sum. The gradient of the player's extra losses, each a mean over its segment's
/// tokens, is added likewise.
double add_gradient(const Player& player, const LanguageModel& model, const Batch& batch, double count,
                    const SegmentRun& run);

/// The sum of losses where mask is 1, without gradients and observe; `state` becomes the one after the batch.
double sum_loss(const Player& player, const Batch& batch, State& state, const SegmentRun& run);

}  // namespace lineal
