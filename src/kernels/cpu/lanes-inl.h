// Channels across lanes: vectors of a tensor's last dimension, float32 or bfloat16, whole or in part.
#if defined(LINEAL_KERNELS_CPU_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_LANES_INL_H_
#undef LINEAL_KERNELS_CPU_LANES_INL_H_
#else
#define LINEAL_KERNELS_CPU_LANES_INL_H_
#endif

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
using cpu::BFloat16;

HWY_INLINE Vec load_lanes(const float* x) { return hn::LoadU(kWide, x); }
HWY_INLINE void store_lanes(Vec v, float* x) { hn::StoreU(v, kWide, x); }

HWY_INLINE Vec load_lanes(const BFloat16* x) {
  const hn::Rebind<uint16_t, Wide> half;
  const hn::RebindToUnsigned<Wide> bits;
  return hn::BitCast(kWide, hn::ShiftLeft<16>(hn::PromoteTo(bits, hn::LoadU(half, &x->bits))));
}

/// Rounds to nearest, ties to even.
HWY_INLINE void store_lanes(Vec v, BFloat16* x) {
  const hn::Rebind<uint16_t, Wide> half;
  const hn::RebindToUnsigned<Wide> bits;
  const hn::RebindToSigned<Wide> whole;
  const auto exact = hn::BitCast(bits, v), odd = hn::And(hn::ShiftRight<16>(exact), hn::Set(bits, 1u));
  const auto rounded = hn::Add(exact, hn::Add(hn::Set(bits, 0x7fffu), odd));
  const auto safe = hn::IfThenElse(hn::RebindMask(bits, hn::IsNaN(v)), hn::Set(bits, 0x7fc00000u), rounded);
  hn::StoreU(hn::DemoteTo(half, hn::BitCast(whole, hn::ShiftRight<16>(safe))), half, &x->bits);
}

/// The first `count` lanes; zeros, or left alone, beyond.
template <class Number>
HWY_INLINE Vec load_lanes(const Number* x, int64_t count) {
  if (HWY_LIKELY(count >= kLanes)) return load_lanes(x);
  Number part[kLanes] = {};
  std::copy_n(x, count, part);
  return load_lanes(part);
}
template <class Number>
HWY_INLINE void store_lanes(Vec v, Number* x, int64_t count) {
  if (HWY_LIKELY(count >= kLanes)) return store_lanes(v, x);
  Number part[kLanes];
  store_lanes(v, part);
  std::copy_n(part, count, x);
}

/// Calls f(n, count) with a compile-time count for pieces that cover [0, N).
template <int most, class F>
HWY_INLINE void each_piece(int64_t N, const F& f) {
  int64_t n = 0;
  for (; n + most <= N; n += most) f(n, std::integral_constant<int, most>());
  if constexpr (most > 1) {
    each_piece<most / 2>(N - n, [&](int64_t rest, auto count) { f(n + rest, count); });
  }
}

/// lanes [N, kLanes] = rows [count, N] transposed, zeros in the lanes beyond.
inline void rows_to_lanes(const float* rows, int64_t count, int64_t N, float* lanes) {
  if (count >= kLanes && N % 4 == 0) return transpose(kLanes, N, rows, N, lanes, kLanes);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[n * kLanes + l] = l < count ? rows[l * N + n] : 0;
  }
}
inline void lanes_to_rows(const float* lanes, int64_t count, int64_t N, float* rows) {
  if (count >= kLanes && N % 4 == 0) return transpose(N, kLanes, lanes, kLanes, rows, N);
  for (int64_t l = 0; l < std::min(count, kLanes); ++l) {
    for (int64_t n = 0; n < N; ++n) rows[l * N + n] = lanes[n * kLanes + l];
  }
}

template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> add_quarters(D, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return add_quarters(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

/// The sum of the lanes of each of four vectors.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> lane_sums(Vec a, Vec b, Vec c, Vec d) {
  const hn::Repartition<uint64_t, Wide> pair;
  const auto halves = [](Vec x, Vec y) {
    return hn::Add(hn::InterleaveLower(kWide, x, y), hn::InterleaveUpper(kWide, x, y));
  };
  const auto low = hn::BitCast(pair, halves(a, b)), high = hn::BitCast(pair, halves(c, d));
  return add_quarters(kWide, hn::Add(hn::BitCast(kWide, hn::InterleaveLower(pair, low, high)),
                                     hn::BitCast(kWide, hn::InterleaveUpper(pair, low, high))));
}

/// sums [4] = that of the vectors `from` to `from + 4 kLanes`.
HWY_INLINE void lane_sums(const float* from, float* sums) {
  const auto at = [&](int64_t i) { return load_lanes(from + i * kLanes); };
  hn::StoreU(lane_sums(at(0), at(1), at(2), at(3)), hn::FixedTag<float, 4>(), sums);
}

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_LANES_INL_H_
