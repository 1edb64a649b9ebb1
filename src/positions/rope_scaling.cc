// Rotary frequencies for longer texts: s times the L_0 tokens that the model was trained on.
//   rope          f_i = theta^(-2i/K),  i = 0..K/2-1                                               (RoFormer, 2021)
//   linear        f_i / s                                                           (position interpolation, 2023)
//   ntk           theta s^(K/(K-2)) for theta                                                (NTK-aware RoPE, 2023)
//   dynamic_ntk   ntk with s = a n/L_0 - (a-1) in a text of n > L_0 tokens, a the constant          (dynamic NTK, 2023)
//   yarn          (1-m) f/s + m f,  m = mask(beta_fast, beta_slow), tables times 0.1 ln s + 1          (YaRN, 2023)
//   ntk_by_parts  linear and ntk by mask(1.25, 0.75), that and rope by mask(16, 2)                     (YaRN, 2023)
//   llama3        f where a pair turns more than `high` times in L_0, f/s where less than `low`; between them, for r
//                 turns, t = (r - low)/(high - low):  (1-t) f/s + t f                                (Llama 3.1, 2024)
// mask(fast, slow): 1 for pairs that turn `fast` times in L_0 or more, 0 for `slow` or less, linear in i between them:
//   pair(r) = K ln(L_0 / (2 pi r)) / (2 ln theta),  first = max(floor(pair(fast)), 0),  last = min(ceil(pair(slow)),
//   K-1) m_i = 1 - clamp((i - first) / (last - first), 0, 1),  last + 0.001 when last = first
// K-1, though the last pair is K/2-1: as published. Without `truncate` nothing is rounded.
//
// In dynamic_ntk a query at place p reads all keys with the frequencies of n = p + 1, rounded up to a multiple of L_0:
// a length of its own, however the text was cut into calls, and keys turn anew once in L_0 queries, not for each. So
// the cache holds keys that are not turned.
#include "positions/rope_scaling.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace lineal {
namespace {

Tensor ramp_mask(const PositionConfig& config, int64_t K, double fast, double slow) {
  const auto pair = [&](double turns) {
    return static_cast<double>(K) *
           std::log(static_cast<double>(config.original_length) / (2 * std::numbers::pi * turns)) /
           (2 * std::log(config.rope_theta));
  };
  const bool whole = config.truncate;
  const double first = std::max(whole ? std::floor(pair(fast)) : pair(fast), 0.0);
  double last = std::min(whole ? std::ceil(pair(slow)) : pair(slow), static_cast<double>(K - 1));
  if (last == first) last += 0.001;
  return 1 - ((at::arange(K / 2, at::kDouble) - first) / (last - first)).clamp(0, 1);
}

Tensor blend(const Tensor& slower, const Tensor& faster, const Tensor& mask) {
  return slower * (1 - mask) + faster * mask;
}

void require_length(const PositionConfig& config) {
  require(config.original_length > 0, config, "original_length", "the tokens that the model was trained on");
}

Frequencies ntk(const PositionConfig& config, int64_t K, double s) {
  require(K > 2, config, "position", text("another for heads of size ", K, ": its base grows with s^(K/(K-2))"));
  const double power = static_cast<double>(K) / static_cast<double>(K - 2);
  return rope_frequencies(K, config.rope_theta * std::pow(s, power));
}

}  // namespace

Frequencies plain_frequencies(const PositionConfig& config, int64_t K) {
  require(config.rope_theta > 1, config, "rope_theta", "a base above 1");
  if (K % 2 != 0) fail("position ", config.position, ": head size is ", K, ", rotary embedding needs an even one");
  return rope_frequencies(K, config.rope_theta);
}

Frequencies linear_frequencies(const PositionConfig& config, int64_t K) {
  return {plain_frequencies(config, K).f / config.factor};
}

Frequencies ntk_frequencies(const PositionConfig& config, int64_t K) {
  plain_frequencies(config, K);
  return ntk(config, K, config.factor);
}

Frequencies dynamic_ntk_frequencies(const PositionConfig& config, int64_t K, int64_t length) {
  require_length(config);
  const double a = config.ntk_constant;
  const double times = static_cast<double>(length) / static_cast<double>(config.original_length);
  return ntk(config, K, times > 1 ? a * times - (a - 1) : 1);
}

Frequencies yarn_frequencies(const PositionConfig& config, int64_t K) {
  const Tensor f = plain_frequencies(config, K).f;
  require_length(config);
  require(config.beta_slow > 0 && config.beta_slow < config.beta_fast, config, "beta_slow",
          "more than 0 and less than beta_fast");
  const Tensor mask = ramp_mask(config, K, config.beta_fast, config.beta_slow);
  const double scale = config.attention_factor;
  return {blend(f / config.factor, f, mask), scale > 0 ? scale : 0.1 * std::log(config.factor) + 1};
}

Frequencies ntk_by_parts_frequencies(const PositionConfig& config, int64_t K) {
  const Tensor f = plain_frequencies(config, K).f;
  require_length(config);
  const Tensor slow = blend(f / config.factor, ntk(config, K, config.factor).f, ramp_mask(config, K, 1.25, 0.75));
  return {blend(slow, f, ramp_mask(config, K, 16, 2))};
}

Frequencies llama3_frequencies(const PositionConfig& config, int64_t K) {
  const Tensor f = plain_frequencies(config, K).f;
  require_length(config);
  const double low = config.low_freq_factor, high = config.high_freq_factor;
  require(low < high, config, "low_freq_factor", "less than high_freq_factor");
  const Tensor turns = static_cast<double>(config.original_length) * f / (2 * std::numbers::pi);
  return {blend(f / config.factor, f, ((turns - low) / (high - low)).clamp(0, 1))};
}

namespace {

class Turned : public Position {
 public:
  explicit Turned(Frequencies frequencies) : frequencies_(std::move(frequencies)) {}
  Tensor turn(const Tensor& x, const Tensor& place) const override {
    return rope(x, place, frequencies_, RopePairs::halves);
  }

 private:
  Frequencies frequencies_;
};

class DynamicNtk : public Position {
 public:
  explicit DynamicNtk(const PositionConfig& config) : config_(config) {}
  bool by_pair() const override { return true; }
  Tensor scores(const Tensor& q, const Tensor& k, const Tensor& q_place, const Tensor& k_place) const override {
    const int64_t L = config_.original_length;
    const Tensor times = at::floor_divide(q_place, L) + 1;  // [B, n], (p + 1) / L rounded up
    const int64_t least = times.min().item<int64_t>(), most = times.max().item<int64_t>();
    Tensor result;
    for (int64_t m = least; m <= most; ++m) {
      const Tensor here = times == m;
      if (!here.any().item<bool>()) continue;
      const Frequencies f = dynamic_ntk_frequencies(config_, q.size(3), m * L);
      const auto turned = [&](const Tensor& x, const Tensor& place) { return rope(x, place, f, RopePairs::halves); };
      const Tensor scores = dot_scores(turned(q, q_place), turned(k, k_place));
      result = result.defined() ? at::where(here.unsqueeze(1).unsqueeze(3), scores, result) : scores;
    }
    return result;
  }

 private:
  PositionConfig config_;
};

template <Frequencies (*frequencies)(const PositionConfig&, int64_t)>
std::unique_ptr<Position> make_turned(const PositionConfig& config, int64_t K, int64_t /*H*/) {
  return std::make_unique<Turned>(frequencies(config, K));
}

std::unique_ptr<Position> make_dynamic_ntk(const PositionConfig& config, int64_t K, int64_t /*H*/) {
  plain_frequencies(config, K);
  dynamic_ntk_frequencies(config, K, 1);
  return std::make_unique<DynamicNtk>(config);
}

}  // namespace

extern const PositionSpec rope_spec, linear_spec, ntk_spec, dynamic_ntk_spec, yarn_spec, ntk_by_parts_spec, llama3_spec;
const PositionSpec rope_spec = {"rope", "rotary embedding (RoFormer, 2021)", make_turned<plain_frequencies>};
const PositionSpec linear_spec = {"linear", "positions divided by the factor (Position Interpolation, 2023)",
                                  make_turned<linear_frequencies>};
const PositionSpec ntk_spec = {"ntk", "a larger base for the factor (NTK-aware RoPE, 2023)",
                               make_turned<ntk_frequencies>};
const PositionSpec dynamic_ntk_spec = {"dynamic_ntk", "a base that grows with the text (dynamic NTK, 2023)",
                                       make_dynamic_ntk};
const PositionSpec yarn_spec = {"yarn", "slow pairs interpolated, fast ones kept, sharper scores (YaRN, 2023)",
                                make_turned<yarn_frequencies>};
const PositionSpec ntk_by_parts_spec = {"ntk_by_parts", "the same blend with ntk in the middle (YaRN, 2023)",
                                        make_turned<ntk_by_parts_frequencies>};
const PositionSpec llama3_spec = {"llama3", "slow pairs interpolated, fast ones kept (Llama 3.1, 2024)",
                                  make_turned<llama3_frequencies>};

}  // namespace lineal
