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
      {"rotary_dims", &rotary_dims, between(0, 1 << 20), "numbers of a head that know places; 0: all", 0},
      {"attention_factor", &attention_factor, at_least(0), "yarn: scale of what is turned; 0: 0.1 ln(factor) + 1", 0.0},
      {"truncate", &truncate, {}, "yarn: its ramp begins and ends at whole pairs", true},
  };
}

Tensor Position::turn(const Tensor& x, const Tensor& /*place*/) const { return x; }

Tensor Position::scores(const Tensor& q, const Tensor& k, const Tensor& /*q_place*/, const Tensor& /*k_place*/) const {
  return dot_scores(q, k);
}

namespace {

/// A method for the first R of a head's K numbers: scores are K^{-1/2} (q_R . k_R + q_{K-R} . k_{K-R}).
class Partial : public Position {
 public:
  Partial(std::unique_ptr<Position> method, int64_t R) : method_(std::move(method)), R_(R) {}

  Tensor turn(const Tensor& x, const Tensor& place) const override {
    return at::cat({method_->turn(x.slice(3, 0, R_), place), x.slice(3, R_)}, 3);
  }
  bool by_pair() const override { return method_->by_pair(); }
  Tensor scores(const Tensor& q, const Tensor& k, const Tensor& q_place, const Tensor& k_place) const override {
    if (!by_pair()) return dot_scores(q, k);
    const int64_t K = q.size(3);
    const Tensor turned = method_->scores(q.slice(3, 0, R_), k.slice(3, 0, R_), q_place, k_place);
    const Tensor rest = dot_scores(q.slice(3, R_), k.slice(3, R_));
    const auto share = [K](int64_t n) { return std::sqrt(static_cast<double>(n) / static_cast<double>(K)); };
    return turned * share(R_) + rest * share(K - R_);
  }

 private:
  std::unique_ptr<Position> method_;
  int64_t R_;
};

}  // namespace

std::unique_ptr<Position> make_position(const PositionConfig& config, int64_t K, int64_t H) {
  const bool none = config.position == "none" || (config.position == "rope" && config.rope_theta == 0);
  const PositionSpec& spec = find<PositionSpec>(none ? "none" : config.position);
  const int64_t R = config.rotary_dims;
  if (R == 0 || none) return spec.make(config, K, H);
  require(R <= K, config, "rotary_dims", text("at most the size of a head, ", K));
  require(config.position != "alibi", config, "rotary_dims", "0: alibi turns nothing");
  return R == K ? spec.make(config, K, H) : std::make_unique<Partial>(spec.make(config, R, H), R);
}

void require(bool holds, const PositionConfig& config, const std::string& field, const std::string& what) {
  if (holds) return;
  const std::string value = line_of(config.values()[field]);
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
