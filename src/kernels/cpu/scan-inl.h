// The selective scan of one vector of channels over one chunk of tokens, its states in registers: formulas and letters
// in selective_scan.cc.
#if defined(LINEAL_KERNELS_CPU_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_SCAN_INL_H_
#undef LINEAL_KERNELS_CPU_SCAN_INL_H_
#else
#define LINEAL_KERNELS_CPU_SCAN_INL_H_
#endif

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {

/// How many n are in registers at once, forward and backward.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kForwardStates = 8, kBackwardStates = 4;
#else
constexpr int kForwardStates = 4, kBackwardStates = 2;
#endif

HWY_INLINE Vec zero() { return hn::Zero(kWide); }
HWY_INLINE Vec all(float x) { return hn::Set(kWide, x); }

/// What one vector of channels reads in a chunk of c tokens. A is multiplied by log2(e): a_t = 2^(dt_t A).
struct ScanReads {
  int64_t c, N;
  const float *dt, *x;     // [c, kLanes]
  const float *B_t, *C_t;  // [c, N]
  const bool* starts;      // [c]
  const float* A;          // [N, kLanes]
};

/// h [N, kLanes] advances over the chunk; C_t . h_t is stored in o [c, kLanes], or added to it.
template <int count>
void advance(const ScanReads& in, int64_t n, float* h, float* o) {
  Vec state[count], rate[count];
  for (int i = 0; i < count; ++i) {
    state[i] = load_lanes(h + (n + i) * kLanes);
    rate[i] = load_lanes(in.A + (n + i) * kLanes);
  }
  for (int64_t t = 0; t < in.c; ++t) {
    if (HWY_UNLIKELY(in.starts[t])) std::fill_n(state, count, zero());
    const Vec dt = load_lanes(in.dt + t * kLanes), x = load_lanes(in.x + t * kLanes);
    const float *B_t = in.B_t + t * in.N + n, *C_t = in.C_t + t * in.N + n;
    Vec sum = n == 0 ? zero() : load_lanes(o + t * kLanes);
    for (int i = 0; i < count; ++i) {
      state[i] = hn::MulAdd(exp2(hn::Mul(dt, rate[i])), state[i], hn::Mul(x, all(B_t[i])));
      sum = hn::MulAdd(state[i], all(C_t[i]), sum);
    }
    store_lanes(sum, o + t * kLanes);
  }
  for (int i = 0; i < count; ++i) store_lanes(state[i], h + (n + i) * kLanes);
}

/// What the backward pass of one vector of channels leaves for others, and work space.
struct ScanWrites {
  const float* d_o;        // [c, kLanes]
  float *o, *dx, *ddt;     // [c, kLanes]: C_t . h_t, g_t . B_t and w_t . A log2(e)
  float *dB, *dC;          // [N, c, kLanes], added to; to be summed over lanes
  float *R, *dA;           // [N, kLanes]
  float *decays, *before;  // [c, kBackwardStates, kLanes]: a_t and h_{t-1}
};

/// From h [N, kLanes], the state at the chunk's start.
template <int count>
void retrace(const ScanReads& in, int64_t n, const float* h, const ScanWrites& out) {
  Vec state[count], rate[count];
  for (int i = 0; i < count; ++i) {
    state[i] = load_lanes(h + (n + i) * kLanes);
    rate[i] = load_lanes(in.A + (n + i) * kLanes);
  }
  for (int64_t t = 0; t < in.c; ++t) {
    const bool restart = in.starts[t];
    if (HWY_UNLIKELY(restart)) std::fill_n(state, count, zero());
    const Vec dt = load_lanes(in.dt + t * kLanes), x = load_lanes(in.x + t * kLanes);
    const Vec d_o = load_lanes(out.d_o + t * kLanes);
    const float *B_t = in.B_t + t * in.N + n, *C_t = in.C_t + t * in.N + n;
    Vec sum = n == 0 ? zero() : load_lanes(out.o + t * kLanes);
    for (int i = 0; i < count; ++i) {
      const int64_t at = (t * count + i) * kLanes;
      const Vec a = restart ? zero() : exp2(hn::Mul(dt, rate[i]));
      store_lanes(a, out.decays + at);
      store_lanes(state[i], out.before + at);
      state[i] = hn::MulAdd(a, state[i], hn::Mul(x, all(B_t[i])));
      sum = hn::MulAdd(state[i], all(C_t[i]), sum);
      float* dC = out.dC + ((n + i) * in.c + t) * kLanes;
      store_lanes(hn::MulAdd(d_o, state[i], load_lanes(dC)), dC);
    }
    store_lanes(sum, out.o + t * kLanes);
  }
}

template <int count>
void reverse(const ScanReads& in, int64_t n, const ScanWrites& out) {
  Vec R[count], dA[count], rate[count];
  for (int i = 0; i < count; ++i) {
    R[i] = load_lanes(out.R + (n + i) * kLanes);
    dA[i] = load_lanes(out.dA + (n + i) * kLanes);
    rate[i] = load_lanes(in.A + (n + i) * kLanes);
  }
  for (int64_t t = in.c - 1; t >= 0; --t) {
    const Vec dt = load_lanes(in.dt + t * kLanes), x = load_lanes(in.x + t * kLanes);
    const Vec d_o = load_lanes(out.d_o + t * kLanes);
    const float *B_t = in.B_t + t * in.N + n, *C_t = in.C_t + t * in.N + n;
    Vec dx = n == 0 ? zero() : load_lanes(out.dx + t * kLanes);
    Vec ddt = n == 0 ? zero() : load_lanes(out.ddt + t * kLanes);
    for (int i = 0; i < count; ++i) {
      const int64_t at = (t * count + i) * kLanes;
      const Vec g = hn::MulAdd(d_o, all(C_t[i]), R[i]);
      float* dB = out.dB + ((n + i) * in.c + t) * kLanes;
      store_lanes(hn::MulAdd(g, x, load_lanes(dB)), dB);
      dx = hn::MulAdd(g, all(B_t[i]), dx);
      R[i] = hn::Mul(g, load_lanes(out.decays + at));
      const Vec w = hn::Mul(R[i], load_lanes(out.before + at));
      ddt = hn::MulAdd(w, rate[i], ddt);
      dA[i] = hn::MulAdd(w, dt, dA[i]);
    }
    if (HWY_UNLIKELY(in.starts[t])) std::fill_n(R, count, zero());
    store_lanes(dx, out.dx + t * kLanes);
    store_lanes(ddt, out.ddt + t * kLanes);
  }
  for (int i = 0; i < count; ++i) {
    store_lanes(R[i], out.R + (n + i) * kLanes);
    store_lanes(dA[i], out.dA + (n + i) * kLanes);
  }
}

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_SCAN_INL_H_
