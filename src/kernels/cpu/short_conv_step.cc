// One token of the short convolution, forward only; the window moves on, in place where it lies.  formulas:
// short_conv.cc
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/short_conv_step.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/short_conv.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

/// The channels of one row; taps [D / kLanes, J, kLanes].
template <class Number>
void step_row(const ConvCall& call, int64_t b, const float* taps, const StatePart& window, Number* y) {
  const int64_t D = call.D, last = call.J - 1;
  const bool restart = call.starts && call.starts[b];
  const Number* x = call.x.at<Number>(b, 0);
  const float* before = window.before(b);
  float* after = window.after(b);
  for (int64_t d = 0; d < D; d += kLanes, taps += call.J * kLanes) {
    const int64_t left = D - d;
    const auto seen = [&](int64_t j) {
      if (j == last) return load_lanes(x + d, left);
      return restart ? hn::Zero(kWide) : load_lanes(before + j * D + d, left);
    };
    Vec p = load_lanes(call.bias + d, left), token = seen(0);
    for (int64_t j = 0; j < last; ++j) {
      const Vec next = seen(j + 1);
      p = hn::MulAdd(load_lanes(taps + j * kLanes), token, p);
      store_lanes(next, after + j * D + d, left);
      token = next;
    }
    p = hn::MulAdd(load_lanes(taps + last * kLanes), token, p);
    store_lanes(call.silu ? hn::Mul(p, sigmoid(p)) : p, y + b * D + d, left);
  }
}

template <class Number>
void step_rows(const ConvCall& call, const StatePart& window, Number* y) {
  parallel(call.B, call.B * call.D * call.J, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* taps = scratch.take(padded(call.D) * call.J);
    for (int64_t d = 0; d < call.D; d += kLanes) {
      rows_to_lanes(call.weight + d * call.J, call.D - d, call.J, taps + d * call.J);
    }
    for (int64_t b = begin; b < end; ++b) step_row(call, b, taps, window, y);
  });
}

void step(const ConvCall& call, const StatePart& window, void* y) {
  call.bfloat16 ? step_rows(call, window, static_cast<BFloat16*>(y)) : step_rows(call, window, static_cast<float*>(y));
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(step);

void cpu::short_conv_step(const ConvCall& call, const StatePart& window, void* y) {
  HWY_DYNAMIC_DISPATCH(step)(call, window, y);
}

}  // namespace lineal::kernels
#endif
