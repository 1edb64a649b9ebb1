#include "positions/rope.h"

#include <ATen/ATen.h>

#include <cmath>

#include "kernels/kernels.h"

namespace lineal {
namespace {

Tensor rope_reference(const kernels::RopeInput& in) {
  const auto of_tokens = [&](const Tensor& table) { return at::index(table, {in.place}).unsqueeze(2); };
  const Tensor cos = of_tokens(in.cos), sin = of_tokens(in.sin);  // [B, T, 1, K/2]
  const Tensor x = in.x.to(in.cos.scalar_type());
  const int64_t half = x.size(3) / 2;
  Tensor u, w, rotated;
  if (in.interleaved) {
    const Tensor both = x.unflatten(3, {half, 2});
    u = both.select(4, 0), w = both.select(4, 1);
    rotated = at::stack({u * cos - w * sin, u * sin + w * cos}, 4).flatten(3);
  } else {
    u = x.slice(3, 0, half), w = x.slice(3, half);
    rotated = at::cat({u * cos - w * sin, u * sin + w * cos}, 3);
  }
  return rotated.to(in.x.scalar_type());
}

}  // namespace

Tensor rope(const Tensor& x, const Tensor& position, double theta, RopePairs pairs) {
  const int64_t K = x.size(3), tokens = position.numel();
  const auto wide = x.options().dtype(at::kDouble);
  const Tensor frequency = (at::arange(0, K, 2, wide) * (-std::log(theta) / static_cast<double>(K))).exp();
  const int64_t end = position.max().item<int64_t>() + 1;
  const bool fewer = end < tokens;  // positions than tokens: each angle once
  const Tensor angle = (fewer ? at::arange(end, wide) : position.flatten().to(wide)).unsqueeze(1) * frequency;
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  kernels::RopeInput in{x, angle.cos().to(compute), angle.sin().to(compute), position, pairs == RopePairs::interleaved};
  if (!fewer) in.place = at::arange(tokens, position.options()).view_as(position);
  return kernels::use(kernels::rope, rope_reference, in);
}

}  // namespace lineal
