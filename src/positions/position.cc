#include "positions/position.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "core/registry.h"

namespace lineal {

std::vector<Field> PositionConfig::fields() {
  return {
      {"position", &position, one_of(lineal::names<PositionSpec>()), "how places enter the scores (lineal list)"},
      {"rope_theta", &rope_theta, at_least(0), "rotary base; 0 for none"},
      {"factor", &factor, at_least(1), "lengths grow by this: linear, ntk, yarn, ntk_by_parts, llama3, leaky_rerope"},
      {"original_length", &original_length, between(0, 1LL << 40), "tokens trained on; 0: not known"},
      {"beta_fast", &beta_fast, at_least(0), "yarn: pairs that turn this often in original_length stay as they are"},
      {"beta_slow", &beta_slow, at_least(0), "yarn: pairs that turn less than this are interpolated"},
      {"low_freq_factor", &low_freq_factor, at_least(0), "llama3: the same as beta_slow"},
      {"high_freq_factor", &high_freq_factor, at_least(0), "llama3: the same as beta_fast"},
      {"ntk_constant", &ntk_constant, at_least(0), "dynamic_ntk: how fast the base grows with the length"},
      {"rerope_window", &rerope_window, between(0, 1LL << 40), "rerope, leaky_rerope: distances below it stay"},
  };
}

Tensor Position::turn(const Tensor& x, const Tensor& /*place*/) const { return x; }

Tensor Position::scores(const Tensor& q, const Tensor& k, const Tensor& /*q_place*/, const Tensor& /*k_place*/) const {
  return dot_scores(q, k);
}

std::unique_ptr<Position> make_position(const PositionConfig& config, int64_t K, int64_t H) {
  const bool none = config.position == "rope" && config.rope_theta == 0;
  return find<PositionSpec>(none ? "none" : config.position).make(config, K, H);
}

void require(bool holds, const PositionConfig& config, const std::string& field, const std::string& what) {
  if (holds) return;
  const std::string value = line_of(config.write()[field]);
  fail("position ", config.position, ": ", field, " is ", value, ", expected ", what);
}

Tensor dot_scores(const Tensor& q, const Tensor& k) {
  const int64_t n = q.size(1), H = q.size(2), H_kv = k.size(2);
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  const Tensor queries = (q * scale).transpose(1, 2).unflatten(1, {H_kv, H / H_kv}).flatten(2, 3);  // [B, H_kv, G n, K]
  return at::matmul(queries, k.permute({0, 2, 3, 1})).unflatten(2, {H / H_kv, n}).flatten(1, 2);
}

Tensor weighted_sum(const Tensor& p, const Tensor& v) {
  const int64_t n = p.size(2), H = p.size(1), H_kv = v.size(2);
  const Tensor weights = p.unflatten(1, {H_kv, H / H_kv}).flatten(2, 3);  // [B, H_kv, G n, m]
  return at::matmul(weights, v.transpose(1, 2)).unflatten(2, {H / H_kv, n}).flatten(1, 2).transpose(1, 2);
}

}  // namespace lineal
