// One token of the selective scan, forward only: the N numbers of a channel across lanes, as they lie in memory.
// formulas: selective_scan.cc
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/selective_scan_step.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/selective_scan.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

template <class Number>
class Step {
 public:
  Step(Scratch& scratch, const ScanCall& call, const StatePart& h, void* y)
      : call_(call), N_(call.N), state_(h), y_(static_cast<Number*>(y)) {
    for (float** inputs : {&B_t_, &C_t_}) *inputs = scratch.take(padded(N_));
  }

  /// A block of channels of one row, index = b * blocks + block.
  void run(int64_t index) {
    b_ = index / call_.blocks();
    const int64_t block = index % call_.blocks(), group = block / call_.blocks_per_group();
    const int64_t within = block % call_.blocks_per_group() * call_.block();
    const int64_t first = group * call_.channels() + within;
    const int64_t end = first + std::min(call_.block(), call_.channels() - within);
    for (int64_t n = 0; n < N_; n += kLanes) {
      store_lanes(load_lanes(call_.B_t.at<Number>(b_, 0) + group * N_ + n, N_ - n), B_t_ + n);
      store_lanes(load_lanes(call_.C_t.at<Number>(b_, 0) + group * N_ + n, N_ - n), C_t_ + n);
    }
    for (int64_t d = first; d < end; d += kLanes) channels(d, std::min(kLanes, end - d));
  }

 private:
  Vec parameter(const float* x, int64_t d, int64_t count) const {
    return x ? load_lanes(x + d, count) : hn::Zero(kWide);
  }
  Vec token(const TokenRows& x, int64_t d, int64_t count) const { return load_lanes(x.at<Number>(b_, 0) + d, count); }

  /// Channels [d, d + count), at most kLanes.
  void channels(int64_t d, int64_t count) {
    const Vec raw = hn::Add(token(call_.delta, d, count), parameter(call_.bias, d, count));
    const Vec step = call_.softplus ? softplus(raw) : raw, u = token(call_.u, d, count);
    HWY_ALIGN float dt[kLanes], x[kLanes], o[kLanes], products[kLanes * kLanes];
    store_lanes(hn::Mul(step, hn::Set(kWide, kLog2E)), dt);
    store_lanes(hn::Mul(step, u), x);
    for (int64_t i = 0; i < count; ++i) store_lanes(advance(d + i, dt[i], x[i]), products + i * kLanes);
    for (int64_t i = 0; i < count; i += 4) lane_sums(products + i * kLanes, o + i);
    Vec y = hn::MulAdd(parameter(call_.skip, d, count), u, load_lanes(o));
    if (call_.z.data) {
      const Vec z = token(call_.z, d, count);
      y = hn::Mul(y, hn::Mul(z, sigmoid(z)));
    }
    store_lanes(y, y_ + b_ * call_.D + d, count);
  }

  /// h of channel d, dt times log2(e); the lanes' sum is C . h.
  HWY_INLINE Vec advance(int64_t d, float dt, float x) const {
    const float *A = call_.A + d * N_, *before = state_.before(b_) + d * N_;
    float* after = state_.after(b_) + d * N_;
    const bool restart = call_.starts && call_.starts[b_];
    Vec sum = hn::Zero(kWide);
    for (int64_t n = 0; n < N_; n += kLanes) {
      const Vec rate = load_lanes(A + n, N_ - n);
      const Vec h = restart ? hn::Zero(kWide) : load_lanes(before + n, N_ - n);
      const Vec input = hn::Mul(hn::Set(kWide, x), load_lanes(B_t_ + n));
      const Vec next = hn::MulAdd(exp2(hn::Mul(hn::Set(kWide, dt), rate)), h, input);
      store_lanes(next, after + n, N_ - n);
      sum = hn::MulAdd(next, load_lanes(C_t_ + n), sum);
    }
    return sum;
  }

  const ScanCall& call_;
  const int64_t N_;
  const StatePart& state_;
  Number* y_;
  int64_t b_ = 0;
  float *B_t_, *C_t_;  // [N], zeros beyond
};

template <class Number>
void step_all(const ScanCall& call, const StatePart& h, void* y) {
  parallel(call.B * call.blocks(), call.B * call.D * call.N, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Step<Number> step(scratch, call, h, y);
    for (int64_t i = begin; i < end; ++i) step.run(i);
  });
}

void step(const ScanCall& call, const StatePart& h, void* y) {
  call.bfloat16 ? step_all<BFloat16>(call, h, y) : step_all<float>(call, h, y);
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(step);

void cpu::selective_scan_step(const ScanCall& call, const StatePart& h, void* y) {
  HWY_DYNAMIC_DISPATCH(step)(call, h, y);
}

}  // namespace lineal::kernels
#endif
