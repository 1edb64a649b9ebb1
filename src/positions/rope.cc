#include "positions/rope.h"

#include <ATen/ATen.h>

#include <cmath>

namespace lineal {

Tensor rope(const Tensor& x, const Tensor& position, double theta, RopePairs pairs) {
  const int64_t K = x.size(3);
  const auto wide = x.options().dtype(at::kDouble);
  const Tensor frequency = (at::arange(0, K, 2, wide) * (-std::log(theta) / static_cast<double>(K))).exp();
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t end = position.max().item<int64_t>() + 1;  // fewer positions than tokens: each angle once
  const bool table = end < position.numel();
  const Tensor place = table ? at::arange(end, position.options()) : position;
  const Tensor angle = place.to(wide).unsqueeze(-1) * frequency;
  const auto of_tokens = [&](const Tensor& y) {  // [B, T, 1, K/2]
    const Tensor z = y.to(compute);
    return (table ? at::index(z, {position}) : z).unsqueeze(2);
  };
  const Tensor cos = of_tokens(angle.cos()), sin = of_tokens(angle.sin());
  const Tensor y = x.to(compute);
  Tensor u, w, rotated;
  if (pairs == RopePairs::halves) {
    u = y.slice(3, 0, K / 2), w = y.slice(3, K / 2);
    rotated = at::cat({u * cos - w * sin, u * sin + w * cos}, 3);
  } else {
    const Tensor both = y.unflatten(3, {K / 2, 2});
    u = both.select(4, 0), w = both.select(4, 1);
    rotated = at::stack({u * cos - w * sin, u * sin + w * cos}, 4).flatten(3);
  }
  return rotated.to(x.scalar_type());
}

}  // namespace lineal
