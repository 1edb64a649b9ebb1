// ALiBi: scores fall with the distance, each head at its slope.                      (Train Short, Test Long, 2021)
//   score   K^{-1/2} q_i . k_j - m_h (i - j)
//   slopes  m_h = 2^(-8h/H), h = 1..H; H no power of two: those of the power P below it, then every other of those of
//   2P
// none: no position at all; a causal model finds it in how much it sees.                             (NoPE, 2023)
#include <ATen/ATen.h>

#include <cmath>

#include "positions/position.h"

namespace lineal {
namespace {

std::vector<double> slopes(int64_t H) {
  int64_t P = 1;
  while (2 * P <= H) P *= 2;
  std::vector<double> m;
  for (int64_t h = 1; h <= P; ++h) m.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(P)));
  for (int64_t h = 1; std::ssize(m) < H; h += 2) {
    m.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(2 * P)));
  }
  return m;
}

class Alibi : public Position {
 public:
  explicit Alibi(int64_t H) : slopes_(slopes(H)) {}

  bool by_pair() const override { return true; }
  Tensor scores(const Tensor& q, const Tensor& k, const Tensor& q_place, const Tensor& k_place) const override {
    const Tensor distance = (q_place.unsqueeze(2) - k_place.unsqueeze(1)).unsqueeze(1);  // [B, 1, n, m]
    return dot_scores(q, k) - at::tensor(slopes_, q.options()).view({1, -1, 1, 1}) * distance;
  }

 private:
  std::vector<double> slopes_;  // H
};

}  // namespace

extern const PositionSpec alibi_spec, none_spec;
const PositionSpec alibi_spec = {
    "alibi", "scores that fall with the distance (ALiBi: Train Short, Test Long, 2021)",
    [](const PositionConfig&, int64_t, int64_t H) -> std::unique_ptr<Position> { return std::make_unique<Alibi>(H); }};
const PositionSpec none_spec = {
    "none", "no position (NoPE, 2023)",
    [](const PositionConfig&, int64_t, int64_t) -> std::unique_ptr<Position> { return std::make_unique<Position>(); }};

}  // namespace lineal
