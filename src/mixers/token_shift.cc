#include "mixers/token_shift.h"

#include <ATen/ATen.h>

#include "core/state.h"

namespace lineal {

Tensor token_shift(const Tensor& x, Tensor& last, const Segments& segments, const Rows* rows) {
  if (rows) {
    const Tensor index = rows->index().to(last.device());
    const Tensor before = last.index_select(0, index).unsqueeze(1);
    last.index_copy_(0, index, x.select(1, 0));
    return before;
  }
  const Tensor before = at::cat({last.unsqueeze(1), x.slice(1, 0, -1)}, 1);
  last = own_storage(x.select(1, -1));
  return segments.none() ? before : at::where(segments.starts.unsqueeze(2), 0, before);
}

}  // namespace lineal
