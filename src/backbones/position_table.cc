#include "backbones/position_table.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace lineal {

PositionTable::PositionTable(int64_t positions, int64_t D) {
  weight = register_parameter("weight", at::empty({positions, D}));
}

State PositionTable::initial_state(int64_t B) const {
  State state;
  state["position"] = at::zeros({B}, weight.options().dtype(at::kLong).requires_grad(false));
  return state;
}

Tensor PositionTable::forward(const Tensor& x, State& state, const Segments& segments, const Rows* rows) const {
  Tensor& position = state["position"];
  const Tensor index = rows ? rows->index().to(position.device()) : Tensor();
  const Tensor places = segments.positions(rows ? position.index_select(0, index) : position, x.size(1));  // [B, T]
  const int64_t longest = places.max().item<int64_t>() + 1;
  if (longest > weight.size(0)) {
    fail("model: a document of ", longest, " tokens or more, expected at most max_positions ", weight.size(0),
         ", of which it learned positions");
  }
  const Tensor next = places.select(1, -1) + 1;
  if (rows) {
    position.index_copy_(0, index, next);
  } else {
    position = next;
  }
  return x + at::embedding(weight, places);
}

void PositionTable::reset_parameters(double deviation) {
  at::NoGradGuard no_grad;
  weight.normal_(0, deviation);
}

}  // namespace lineal
