// ReRoPE: rotary embedding whose distances stop growing at a window w.                          (Su, 2023)
//   distance  r = i - j  where i - j < w,  else w                          query at place i, key at place j <= i
//   score     K^{-1/2} (R_r q_i) . k_j
// Leaky ReRoPE, of factor s:  r = w + (i - j - w) / s  beyond the window.
//   beyond the window  R_r q . k = R_{i/s + w - w/s} q . R_{j/s} k;  s = infinity for ReRoPE
// Both scores of all pairs are computed, so it costs attention twice, and the cache holds keys that are not turned.
#include <ATen/ATen.h>

#include "positions/position.h"
#include "positions/rope_scaling.h"

namespace lineal {
namespace {

class ReRope : public Position {
 public:
  /// slowness: 1 / s.
  ReRope(const PositionConfig& config, int64_t K, double slowness)
      : frequencies_(plain_frequencies(config, K)), window_(config.rerope_window), slowness_(slowness) {
    require(window_ > 0, config, "rerope_window", "a distance of at least 1, half the original length for example");
  }

  bool by_pair() const override { return true; }
  Tensor scores(const Tensor& q, const Tensor& k, const Tensor& q_place, const Tensor& k_place) const override {
    const auto turned = [&](const Tensor& x, const Tensor& p) { return rope(x, p, frequencies_, RopePairs::halves); };
    const Tensor near = dot_scores(turned(q, q_place), turned(k, k_place));
    const Tensor far_q = q_place.to(at::kDouble) * slowness_ + static_cast<double>(window_) * (1 - slowness_);
    const Tensor far_k = slowness_ > 0 ? turned(k, k_place.to(at::kDouble) * slowness_) : k;
    const Tensor far = dot_scores(turned(q, far_q), far_k);
    const Tensor distance = q_place.unsqueeze(2) - k_place.unsqueeze(1);  // [B, n, m]
    return at::where((distance < window_).unsqueeze(1), near, far);
  }

 private:
  Frequencies frequencies_;
  int64_t window_;
  double slowness_;
};

}  // namespace

extern const PositionSpec rerope_spec, leaky_rerope_spec;
const PositionSpec rerope_spec = {
    "rerope", "distances that stop growing at a window (ReRoPE: Su, 2023)",
    [](const PositionConfig& config, int64_t K, int64_t /*H*/) -> std::unique_ptr<Position> {
      return std::make_unique<ReRope>(config, K, 0);
    }};
const PositionSpec leaky_rerope_spec = {
    "leaky_rerope", "distances that grow by 1 / factor beyond a window (ReRoPE: Su, 2023)",
    [](const PositionConfig& config, int64_t K, int64_t /*H*/) -> std::unique_ptr<Position> {
      return std::make_unique<ReRope>(config, K, 1 / config.factor);
    }};

}  // namespace lineal
