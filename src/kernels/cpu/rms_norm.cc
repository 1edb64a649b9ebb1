// RMS norm of a residual sum, one row at a time.
//   s = x + added;  r = 1 / sqrt(<s^2> + eps);  y = w s r                       <.>: mean over a row
// Backward, from dy and what else reached s, ds:
//   h  = w dy;  dx = dadded = ds + r (h - s r^2 <h s>);  dw = sum over rows of dy s r
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rms_norm.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rms_norm.h"

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

/// Calls f(j, count) for the vectors of a row.
template <class F>
HWY_INLINE void each_vector(int64_t D, const F& f) {
  int64_t j = 0;
  for (; j + kLanes <= D; j += kLanes) f(j, kLanes);
  if (j < D) f(j, D - j);
}

template <class Added, class Y>
void forward_rows(const NormCall& call, const NormResult& result) {
  const int64_t D = call.D;
  parallel(call.pieces(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * NormCall::kPiece; i < std::min(call.rows, end * NormCall::kPiece); ++i) {
      const float* x = call.x + i * D;
      Vec squares = hn::Zero(kWide);
      if (call.added) {
        const Added* added = static_cast<const Added*>(call.added) + i * D;
        float* sum = result.sum + i * D;
        each_vector(D, [&](int64_t j, int64_t n) {
          const Vec s = hn::Add(load_lanes(x + j, n), load_lanes(added + j, n));
          squares = hn::MulAdd(s, s, squares);
          store_lanes(s, sum + j, n);
        });
        x = sum;
      } else {
        each_vector(D, [&](int64_t j, int64_t n) {
          const Vec s = load_lanes(x + j, n);
          squares = hn::MulAdd(s, s, squares);
        });
      }
      const float r = 1 / std::sqrt(total(squares) / static_cast<float>(D) + call.eps);
      if (result.rstd) result.rstd[i] = r;
      Y* y = static_cast<Y*>(result.y) + i * D;
      const Vec scale = hn::Set(kWide, r);
      each_vector(D, [&](int64_t j, int64_t n) {
        store_lanes(hn::Mul(hn::Mul(load_lanes(x + j, n), scale), load_lanes(call.weight + j, n)), y + j, n);
      });
    }
  });
}

template <class Added, class Y>
void backward_rows(const NormCall& call, const NormGradients& d) {
  const int64_t D = call.D;
  parallel(call.pieces(), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      float* dw = d.partials + piece * D;
      std::fill_n(dw, D, 0.0f);
      for (int64_t i = piece * NormCall::kPiece; i < std::min(call.rows, (piece + 1) * NormCall::kPiece); ++i) {
        const float* s = d.sum + i * D;
        const Y* dy = d.y ? static_cast<const Y*>(d.y) + i * D : nullptr;
        const float* ds = d.sum_after ? d.sum_after + i * D : nullptr;
        const Vec r = hn::Set(kWide, d.rstd[i]);
        Vec along = hn::Zero(kWide);
        if (dy) {
          each_vector(D, [&](int64_t j, int64_t n) {
            const Vec g = load_lanes(dy + j, n), value = load_lanes(s + j, n);
            along = hn::MulAdd(hn::Mul(g, load_lanes(call.weight + j, n)), value, along);
            store_lanes(hn::MulAdd(g, hn::Mul(value, r), load_lanes(dw + j, n)), dw + j, n);
          });
        }
        const Vec back = hn::Set(kWide, total(along) / static_cast<float>(D) * d.rstd[i] * d.rstd[i]);
        each_vector(D, [&](int64_t j, int64_t n) {
          Vec dx = ds ? load_lanes(ds + j, n) : hn::Zero(kWide);
          if (dy) {
            const Vec h = hn::Mul(load_lanes(dy + j, n), load_lanes(call.weight + j, n));
            dx = hn::MulAdd(r, hn::NegMulAdd(load_lanes(s + j, n), back, h), dx);
          }
          store_lanes(dx, d.x + i * D + j, n);
          if (d.added) store_lanes(dx, static_cast<Added*>(d.added) + i * D + j, n);
        });
      }
    }
  });
  std::fill_n(d.weight, D, 0.0f);
  for (int64_t piece = 0; piece < call.pieces(); ++piece) {
    each_vector(D, [&](int64_t j, int64_t n) {
      store_lanes(hn::Add(load_lanes(d.weight + j, n), load_lanes(d.partials + piece * D + j, n)), d.weight + j, n);
    });
  }
}

/// Calls f with a number of the types of `added` and y.
template <class F>
void by_types(const NormCall& call, const F& f) {
  const auto with_added = [&](auto added) { call.y_bfloat16 ? f(added, BFloat16()) : f(added, float()); };
  call.added_bfloat16 ? with_added(BFloat16()) : with_added(float());
}

void forward(const NormCall& call, const NormResult& result) {
  by_types(call, [&](auto added, auto y) { forward_rows<decltype(added), decltype(y)>(call, result); });
}

void backward(const NormCall& call, const NormGradients& d) {
  by_types(call, [&](auto added, auto y) { backward_rows<decltype(added), decltype(y)>(call, d); });
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

namespace cpu {

void rms_norm_forward(const NormCall& call, const NormResult& result) { HWY_DYNAMIC_DISPATCH(forward)(call, result); }

void rms_norm_backward(const NormCall& call, const NormGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
