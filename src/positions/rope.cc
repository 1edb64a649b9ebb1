#include "positions/rope.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
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

void check_rotary_base(const std::string& who, double theta) {
  if (theta > 0 && theta <= 1) fail(who, ": rope_theta is ", theta, ", expected a base above 1, or 0 for none");
}

Frequencies rope_frequencies(int64_t K, double theta) {
  return {(at::arange(0, K, 2, at::kDouble) * (-std::log(theta) / static_cast<double>(K))).exp()};
}

RopeTable rope_table(const Tensor& position, const Frequencies& frequencies, RopePairs pairs, at::TensorOptions like) {
  const auto wide = like.dtype(at::kDouble);
  const Tensor angle = position.to(wide).unsqueeze(1) * frequencies.f.to(wide);  // [P, K/2]
  const auto of_pairs = [&](const Tensor& first, const Tensor& second) {
    const Tensor both =
        pairs == RopePairs::interleaved ? at::stack({first, second}, 2).flatten(1) : at::cat({first, second}, 1);
    return both.to(like.dtype().toScalarType() == at::kDouble ? at::kDouble : at::kFloat);
  };
  const Tensor cos = angle.cos() * frequencies.scale, sin = angle.sin() * frequencies.scale;
  return {of_pairs(cos, cos), of_pairs(-sin, sin)};
}

RopeTable rope_table(const Tensor& position, int64_t K, double theta, RopePairs pairs, at::TensorOptions like) {
  return rope_table(position, rope_frequencies(K, theta), pairs, like);
}

Tensor rope(const Tensor& x, const Tensor& place, const RopeTable& table, RopePairs pairs) {
  return kernels::use(kernels::rope, rope_reference, {x, table.c, table.s, place, pairs == RopePairs::interleaved});
}

Tensor rope(const Tensor& x, const Tensor& position, const Frequencies& frequencies, RopePairs pairs) {
  const int64_t tokens = position.numel();
  const bool whole = position.scalar_type() == at::kLong;
  const int64_t end = whole ? position.max().item<int64_t>() + 1 : tokens;
  const bool fewer = end < tokens;  // positions than tokens: each angle once
  const auto index = position.options().dtype(at::kLong);
  const Tensor angles = fewer ? at::arange(end, index) : position.flatten();
  const Tensor place = fewer ? position : at::arange(tokens, index).view_as(position);
  return rope(x, place, rope_table(angles, frequencies, pairs, x.options()), pairs);
}

Tensor rope(const Tensor& x, const Tensor& position, double theta, RopePairs pairs) {
  return rope(x, position, rope_frequencies(x.size(3), theta), pairs);
}

}  // namespace lineal
