// The gate of SwiGLU in one pass:  y = a s b,  s = sigmoid(a)
// Backward, from dy:               da = dy b s (1 + a (1 - s)),  db = dy a s
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/swiglu.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

/// Calls f(i, count) for the vectors of [0, n), in threads.
template <class F>
void each_vector(int64_t n, const F& f) {
  constexpr int64_t kPiece = 4096;
  parallel((n + kPiece - 1) / kPiece, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(n, end * kPiece);
    for (int64_t i = begin * kPiece; i < last; i += kLanes) f(i, std::min(kLanes, last - i));
  });
}

template <class Number>
void forward_of(const SwigluCall& call, void* y) {
  const auto *a = static_cast<const Number*>(call.a), *b = static_cast<const Number*>(call.b);
  each_vector(call.n, [&](int64_t i, int64_t count) {
    const Vec x = load_lanes(a + i, count);
    store_lanes(hn::Mul(hn::Mul(x, sigmoid(x)), load_lanes(b + i, count)), static_cast<Number*>(y) + i, count);
  });
}

template <class Number>
void backward_of(const SwigluCall& call, const void* dy, void* da, void* db) {
  const auto *a = static_cast<const Number*>(call.a), *b = static_cast<const Number*>(call.b);
  each_vector(call.n, [&](int64_t i, int64_t count) {
    const Vec x = load_lanes(a + i, count), g = load_lanes(static_cast<const Number*>(dy) + i, count);
    const Vec s = sigmoid(x), gs = hn::Mul(g, s);
    const Vec slope = hn::MulAdd(x, hn::Sub(hn::Set(kWide, 1.0f), s), hn::Set(kWide, 1.0f));
    store_lanes(hn::Mul(hn::Mul(gs, load_lanes(b + i, count)), slope), static_cast<Number*>(da) + i, count);
    store_lanes(hn::Mul(gs, x), static_cast<Number*>(db) + i, count);
  });
}

void forward(const SwigluCall& call, void* y) {
  call.bfloat16 ? forward_of<BFloat16>(call, y) : forward_of<float>(call, y);
}

void backward(const SwigluCall& call, const void* dy, void* da, void* db) {
  call.bfloat16 ? backward_of<BFloat16>(call, dy, da, db) : backward_of<float>(call, dy, da, db);
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

namespace cpu {

void swiglu_forward(const SwigluCall& call, void* y) { HWY_DYNAMIC_DISPATCH(forward)(call, y); }

void swiglu_backward(const SwigluCall& call, const void* dy, void* da, void* db) {
  HWY_DYNAMIC_DISPATCH(backward)(call, dy, da, db);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
