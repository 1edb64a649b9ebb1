#include "core/segments.h"

#include <ATen/ATen.h>

namespace lineal {

Segments Segments::slice(int64_t from, int64_t to) const {
  const auto part = [&](const Tensor& marks) {
    const Tensor found = marks.defined() ? marks.slice(1, from, to) : Tensor();
    return found.defined() && found.any().item<bool>() ? found : Tensor();
  };
  return {part(starts), part(padding)};
}

Tensor Segments::documents(int64_t B, int64_t T, at::Device device) const {
  const auto options = at::TensorOptions(device).dtype(at::kLong);
  return none() ? at::zeros({B, T}, options) : starts.to(options).cumsum(1);
}

Tensor Segments::positions(const Tensor& position, int64_t T) const {
  const Tensor index = at::arange(T, position.options()).unsqueeze(0);  // [1, T]
  const Tensor running = position.unsqueeze(1) + index;                 // [B, T]
  if (none()) return running;
  const Tensor last_start = std::get<0>(at::where(starts, index, -1).cummax(1));  // [B, T], -1: none yet
  return at::where(last_start < 0, running, index - last_start);
}

}  // namespace lineal
