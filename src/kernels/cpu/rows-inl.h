// Operations on single rows of tiles: copies and sums.
#if defined(LINEAL_KERNELS_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_ROWS_INL_H_
#undef LINEAL_KERNELS_CPU_ROWS_INL_H_
#else
#define LINEAL_KERNELS_CPU_ROWS_INL_H_
#endif

#include <hwy/cache_control.h>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
using cpu::kAlign;

HWY_INLINE Vec load(const float* x) { return hn::LoadU(kWide, x); }
HWY_INLINE void store(Vec v, float* x) { hn::StoreU(v, kWide, x); }
HWY_INLINE Vec all(float x) { return hn::Set(kWide, x); }

/// Has a line on its way to the second level of cache: in the first, rows that lie whole tokens apart push one another
/// out. x may lie outside any array.
HWY_INLINE void prefetch_ahead(const void* x) { __builtin_prefetch(x, 0, 2); }

/// to [0, n) = from, of any n.
HWY_INLINE void copy(const float* HWY_RESTRICT from, int64_t n, float* HWY_RESTRICT to) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(load(from + j), to + j);
  for (; j < n; ++j) to[j] = from[j];
}

/// The same, and zeros up to `padded`.
HWY_INLINE void copy_padded(const float* HWY_RESTRICT from, int64_t n, int64_t padded, float* HWY_RESTRICT to) {
  copy(from, n, to);
  for (int64_t j = n; j < padded; ++j) to[j] = 0;
}

/// to [0, n) = from in bfloat16, of any n.
HWY_INLINE void widen(const uint16_t* HWY_RESTRICT from, int64_t n, float* HWY_RESTRICT to) {
  const auto* numbers = reinterpret_cast<const BFloat16*>(from);
  for (int64_t j = 0; j < n; j += kLanes) store_lanes(load_lanes(numbers + j, n - j), to + j, n - j);
}

/// to [0, n) = from rounded to bfloat16, to nearest and ties to even; NaN stays NaN.
HWY_INLINE void narrow(const float* HWY_RESTRICT from, int64_t n, uint16_t* HWY_RESTRICT to) {
  auto* numbers = reinterpret_cast<BFloat16*>(to);
  for (int64_t j = 0; j < n; j += kLanes) store_lanes(load_lanes(from + j, n - j), numbers + j, n - j);
}

/// y [0, n) += alpha x, of any n.
HWY_INLINE void add_scaled(float alpha, const float* HWY_RESTRICT x, int64_t n, float* HWY_RESTRICT y) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(hn::MulAdd(all(alpha), load(x + j), load(y + j)), y + j);
  for (; j < n; ++j) y[j] += alpha * x[j];
}

HWY_INLINE void scale(float alpha, int64_t n, float* x) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(hn::Mul(all(alpha), load(x + j)), x + j);
  for (; j < n; ++j) x[j] *= alpha;
}

HWY_INLINE float dot(const float* x, const float* y, int64_t n) {
  Vec sum = hn::Zero(kWide);
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) sum = hn::MulAdd(load(x + j), load(y + j), sum);
  float rest = 0;
  for (; j < n; ++j) rest += x[j] * y[j];
  return total(sum) + rest;
}

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_ROWS_INL_H_
