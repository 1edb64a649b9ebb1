#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/product_rate.cc"
#include "kernels/cpu/product_rate.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

void repeat_products(int64_t count) {
  Scratch scratch;
  const float* a = scratch.take(kRateRows * kRateDepth);
  const float* b = scratch.take(kRateDepth * kRateColumns);
  float* c = scratch.take(kRateRows * kRateColumns);
  for (int64_t i = 0; i < count; ++i) {
    product<Store::set>(kRateRows, kRateColumns, kRateDepth, {a, kRateDepth}, b, kRateColumns, c, kRateColumns);
  }
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(repeat_products);

namespace cpu {

void repeat_products(int64_t threads, int64_t count) {
  parallel(threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) HWY_DYNAMIC_DISPATCH(repeat_products)(count);
  });
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
