#include "positions/rope.h"

#include <ATen/ATen.h>

#include <cmath>

#include "kernels/kernels.h"

namespace lineal {
namespace {

Tensor rope_reference(const kernels::RopeInput& in) {
  const auto of_tokens = [&](const Tensor& table) { return at::index(table, {in.place}).unsqueeze(2); };
  const Tensor x = in.x.to(in.c.scalar_type());
  const int64_t half = x.size(3) / 2;
  const Tensor partner = in.interleaved ? x.unflatten(3, {half, 2}).flip(4).flatten(3) : x.roll(half, 3);
  return (x * of_tokens(in.c) + partner * of_tokens(in.s)).to(in.x.scalar_type());
}

}  // namespace

RopeTable rope_table(const Tensor& position, int64_t K, double theta, RopePairs pairs, at::TensorOptions like) {
  const auto wide = like.dtype(at::kDouble);
  const Tensor frequency = (at::arange(0, K, 2, wide) * (-std::log(theta) / static_cast<double>(K))).exp();
  const Tensor angle = position.to(wide).unsqueeze(1) * frequency;  // [P, K/2]
  const auto of_pairs = [&](const Tensor& first, const Tensor& second) {
    const Tensor both =
        pairs == RopePairs::interleaved ? at::stack({first, second}, 2).flatten(1) : at::cat({first, second}, 1);
    return both.to(like.dtype().toScalarType() == at::kDouble ? at::kDouble : at::kFloat);
  };
  const Tensor cos = angle.cos(), sin = angle.sin();
  return {of_pairs(cos, cos), of_pairs(-sin, sin)};
}

Tensor rope(const Tensor& x, const Tensor& place, const RopeTable& table, RopePairs pairs) {
  return kernels::use(kernels::rope, rope_reference, {x, table.c, table.s, place, pairs == RopePairs::interleaved});
}

Tensor rope(const Tensor& x, const Tensor& position, double theta, RopePairs pairs) {
  const int64_t tokens = position.numel(), end = position.max().item<int64_t>() + 1;
  const bool fewer = end < tokens;  // positions than tokens: each angle once
  const Tensor angles = fewer ? at::arange(end, position.options()) : position.flatten();
  const Tensor place = fewer ? position : at::arange(tokens, position.options()).view_as(position);
  return rope(x, place, rope_table(angles, x.size(3), theta, pairs, x.options()), pairs);
}

}  // namespace lineal
