// Exponentials of whole vectors and what is made of them, to float32 rounding: sigmoid, softplus.
#if defined(LINEAL_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_EXP_INL_H_
#undef LINEAL_KERNELS_CPU_EXP_INL_H_
#else
#define LINEAL_KERNELS_CPU_EXP_INL_H_
#endif

#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {

constexpr float kLog2E = 1.44269504f, kLog2ERest = 1.92596299e-8f;  // their sum is log2(e)
constexpr float kLn2 = 0.693147181f;

/// 2^(n + r) for whole n within_exponents and r in [-1/2, 1/2]: minimax in r, relative error 2e-9 before rounding.
HWY_INLINE Vec exp2_of(Vec n, Vec r) {
  Vec p = hn::Set(kWide, 1.53458124e-4f);
  p = hn::MulAdd(p, r, hn::Set(kWide, 1.33999309e-3f));
  p = hn::MulAdd(p, r, hn::Set(kWide, 9.61848907e-3f));
  p = hn::MulAdd(p, r, hn::Set(kWide, 5.55032864e-2f));
  p = hn::MulAdd(p, r, hn::Set(kWide, 2.40226462e-1f));
  p = hn::MulAdd(p, r, hn::Set(kWide, 6.93147182e-1f));
  p = hn::MulAdd(p, r, hn::Set(kWide, 1.0f));
#if HWY_TARGET <= HWY_AVX3
  return Vec{_mm512_scalef_ps(p.raw, n.raw)};
#else
  const hn::RebindToSigned<Wide> whole;
  const auto exponent = hn::Add(hn::ConvertTo(whole, n), hn::Set(whole, 127));  // 0 makes 0, 255 infinity
  return hn::Mul(p, hn::BitCast(kWide, hn::ShiftLeft<23>(exponent)));
#endif
}

/// x cut to where 2^x is 0 or infinity; NaN stays.
HWY_INLINE Vec within_exponents(Vec x) {
#if HWY_TARGET <= HWY_AVX3
  return hn::Max(hn::Set(kWide, -200.0f), x);  // scaling takes any upper end
#else
  return hn::Min(hn::Set(kWide, 128.0f), hn::Max(hn::Set(kWide, -127.0f), x));
#endif
}

/// 2^x.
HWY_INLINE Vec exp2(Vec x) {
  const Vec cut = within_exponents(x), n = hn::Round(cut);
  return exp2_of(n, hn::Sub(cut, n));
}

/// e^x, with log2(e) in two parts: one rounding of x log2(e) would be an error of |x| ulp.
HWY_INLINE Vec exp(Vec x) {
  const Vec cut = hn::Min(hn::Set(kWide, 89.0f), hn::Max(hn::Set(kWide, -104.0f), x));
  const Vec n = within_exponents(hn::Round(hn::Mul(cut, hn::Set(kWide, kLog2E))));
  const Vec r = hn::MulAdd(cut, hn::Set(kWide, kLog2ERest), hn::MulSub(cut, hn::Set(kWide, kLog2E), n));
  return exp2_of(n, r);
}

HWY_INLINE Vec sigmoid(Vec x) {
  const Vec one = hn::Set(kWide, 1.0f);
  return hn::Div(one, hn::Add(one, exp(hn::Neg(x))));
}

/// log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|: 2 atanh(s), s = e / (2 + e), as a polynomial in s^2 <= 1/9 of
/// relative error 4e-9.
HWY_INLINE Vec softplus(Vec x) {
  const Vec e = exp(hn::Neg(hn::Abs(x)));
  const Vec s = hn::Div(e, hn::Add(hn::Set(kWide, 2.0f), e)), square = hn::Mul(s, s);
  Vec p = hn::Set(kWide, 1.40891676e-1f);
  p = hn::MulAdd(p, square, hn::Set(kWide, 1.39803013e-1f));
  p = hn::MulAdd(p, square, hn::Set(kWide, 2.00124551e-1f));
  p = hn::MulAdd(p, square, hn::Set(kWide, 3.33331573e-1f));
  p = hn::MulAdd(p, square, hn::Set(kWide, 1.0f));
  return hn::MulAdd(hn::Add(s, s), p, hn::Max(hn::Zero(kWide), x));
}

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_EXP_INL_H_
