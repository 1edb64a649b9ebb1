// The tanh form of gelu with two derivatives, to float32 rounding.
//   gelu(x) = x s,   s = 1 / (1 + exp(-z)),   z = 2 sqrt(2/pi) (x + 0.044715 x^3)        as (1 + tanh(z/2)) / 2 = s
//   gelu'   = s + x s(1-s) z';   gelu'' = s(1-s) (2 z' + x ((1-2s) z'^2 + z''))
#if defined(LINEAL_KERNELS_CPU_GELU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_GELU_INL_H_
#undef LINEAL_KERNELS_CPU_GELU_INL_H_
#else
#define LINEAL_KERNELS_CPU_GELU_INL_H_
#endif

#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {

/// 2^t for |t| <= 126, to 1 in 2^23. The polynomial of 2^f, |f| <= 1/2, is the minimax one in relative error: 2e-9.
HWY_INLINE Vec exp2(Vec t) {
  const hn::RebindToSigned<Wide> bits;
  const Vec shift = hn::Set(kWide, 12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, in the low bits
  const Vec shifted = hn::Add(t, shift);
  const Vec f = hn::Sub(t, hn::Sub(shifted, shift));
  Vec y = hn::Set(kWide, 1.535335931546e-4f);
  y = hn::MulAdd(y, f, hn::Set(kWide, 1.339887434751e-3f));
  y = hn::MulAdd(y, f, hn::Set(kWide, 9.618437368305e-3f));
  y = hn::MulAdd(y, f, hn::Set(kWide, 5.550332471254e-2f));
  y = hn::MulAdd(y, f, hn::Set(kWide, 2.402264791353e-1f));
  y = hn::MulAdd(y, f, hn::Set(kWide, 6.931472028551e-1f));
  y = hn::MulAdd(y, f, hn::Set(kWide, 1.0f));
  return hn::BitCast(kWide, hn::Add(hn::BitCast(bits, y), hn::ShiftLeft<23>(hn::BitCast(bits, shifted))));
}

struct Gelu {
  Vec low;              // x, not below -9: there gelu and its derivatives are 0 but for 1e-27
  Vec x;                // nor above 9, where gelu is x
  Vec square, s, rest;  // x^2, s, 1 - s

  HWY_INLINE explicit Gelu(Vec given) {
    low = hn::Max(hn::Set(kWide, -9.0f), given);  // in this order a NaN stays one
    x = hn::Min(hn::Set(kWide, 9.0f), low);
    square = hn::Mul(x, x);
    const Vec one = hn::Set(kWide, 1.0f);
    // -z / ln 2
    const Vec t = hn::Mul(x, hn::MulAdd(square, hn::Set(kWide, -0.1029432395800f), hn::Set(kWide, -2.302208198144f)));
    const Vec e = exp2(t);
    s = hn::Div(one, hn::Add(one, e));
    rest = hn::Mul(e, s);
  }
  HWY_INLINE Vec value() const { return hn::Mul(low, s); }
  HWY_INLINE Vec slope() const { return hn::Mul(s, hn::MulAdd(hn::Mul(x, rest), dz(), hn::Set(kWide, 1.0f))); }
  HWY_INLINE Vec curvature() const {
    const Vec first = dz(), second = hn::Mul(x, hn::Set(kWide, 6 * kCubic));  // z', z''
    const Vec inner = hn::MulAdd(hn::Mul(hn::Sub(rest, s), first), first, second);
    return hn::Mul(hn::Mul(s, rest), hn::MulAdd(x, inner, hn::Add(first, first)));
  }

 private:
  static constexpr float kLinear = 1.595769121606f, kCubic = 0.07135481627260f;  // z = kLinear x + kCubic x^3

  HWY_INLINE Vec dz() const { return hn::MulAdd(square, hn::Set(kWide, 3 * kCubic), hn::Set(kWide, kLinear)); }
};

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_GELU_INL_H_
