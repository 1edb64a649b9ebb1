// Learned absolute positions.                                  (Convolutional Sequence to Sequence Learning, 2017;
// GPT-2)
//   output   x_t + P_p,  p the token's place in its document
//   state    position [B], tokens of the document read
#pragma once

#include <torch/nn/module.h>

#include "core/rows.h"
#include "core/segments.h"
#include "core/state.h"

namespace lineal {

class PositionTable : public torch::nn::Module {
 public:
  PositionTable(int64_t positions, int64_t D);

  /// Part `position`.
  State initial_state(int64_t B) const;
  /// x [B, T, D] -> [B, T, D]; with rows the state is a pool's, whose rows change in place, and T is 1. A place that
  /// the table does not have is an Error that changes nothing.
  Tensor forward(const Tensor& x, State& state, const Segments& segments, const Rows* rows = nullptr) const;
  void reset_parameters(double deviation);

  Tensor weight;  // [positions, D]
};

}  // namespace lineal
