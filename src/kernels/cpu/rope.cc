// Rotary embedding in one pass over its input. A rotation's backward is the rotation by the opposite angle.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rope.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

template <class Number>
HWY_INLINE void turn_pairs(const Number* x, const float* c, const float* s, int64_t K, Vec sign, Number* y) {
  for (int64_t j = 0; j < K; j += kLanes) {
    const int64_t count = std::min(kLanes, K - j);
    const Vec v = load_lanes(x + j, count), partner = hn::Reverse2(kWide, v);
    const Vec across = hn::Mul(hn::Mul(sign, partner), load_lanes(s + j, count));
    store_lanes(hn::MulAdd(v, load_lanes(c + j, count), across), y + j, count);
  }
}

template <class Number>
HWY_INLINE void turn_halves(const Number* x, const float* c, const float* s, int64_t K, Vec sign, Number* y) {
  const int64_t half = K / 2;
  for (int64_t j = 0; j < half; j += kLanes) {
    const int64_t count = std::min(kLanes, half - j);
    const Vec u = load_lanes(x + j, count), w = load_lanes(x + half + j, count);
    const auto turned = [&](Vec own, Vec partner, int64_t at) {
      const Vec across = hn::Mul(hn::Mul(sign, partner), load_lanes(s + at, count));
      store_lanes(hn::MulAdd(own, load_lanes(c + at, count), across), y + at, count);
    };
    turned(u, w, j);
    turned(w, u, half + j);
  }
}

template <class Number>
void turn(const RopeCall& call) {
  constexpr int64_t kPiece = 32;
  parallel((call.tokens + kPiece - 1) / kPiece, [&](int64_t begin, int64_t end) {
    const Vec sign = hn::Set(kWide, call.sign);
    for (int64_t t = begin * kPiece; t < std::min(call.tokens, end * kPiece); ++t) {
      const float *c = call.c + call.place[t] * call.K, *s = call.s + call.place[t] * call.K;
      for (int64_t h = 0; h < call.H; ++h) {
        const int64_t at = (t * call.H + h) * call.K;
        const Number* x = static_cast<const Number*>(call.x) + at;
        Number* y = static_cast<Number*>(call.y) + at;
        call.interleaved ? turn_pairs(x, c, s, call.K, sign, y) : turn_halves(x, c, s, call.K, sign, y);
      }
    }
  });
}

void rope(const RopeCall& call) { call.bfloat16 ? turn<BFloat16>(call) : turn<float>(call); }

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(rope);

namespace cpu {

void rope(const RopeCall& call) { HWY_DYNAMIC_DISPATCH(rope)(call); }

}  // namespace cpu
}  // namespace lineal::kernels
#endif
