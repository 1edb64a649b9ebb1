// Operations on single rows of tiles: copies, sums, layer norm and the gradient of the TTT loss, forward and backward.
// Rows are `padded` floats long, zero beyond the K in use, unless said otherwise.
#if defined(LINEAL_KERNELS_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_ROWS_INL_H_
#undef LINEAL_KERNELS_CPU_ROWS_INL_H_
#else
#define LINEAL_KERNELS_CPU_ROWS_INL_H_
#endif

#include <hwy/cache_control.h>

#include <cmath>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
using cpu::kAlign;

HWY_INLINE Vec load(const float* x) { return hn::LoadU(kWide, x); }
HWY_INLINE void store(Vec v, float* x) { hn::StoreU(v, kWide, x); }
HWY_INLINE Vec all(float x) { return hn::Set(kWide, x); }

/// Has n floats on their way to the cache; may lie outside any array.
HWY_INLINE void prefetch(const float* x, int64_t n) {
  for (int64_t j = 0; j < n; j += kAlign) hwy::Prefetch(x + j);
}

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

/// The layer norm of one head, LN(x) = gamma xhat + beta with xhat = (x - mean) r, r = 1 / sqrt(variance + eps).
struct Norm {
  static constexpr float kEps = 1e-6f;
  int64_t K, padded;
  float *gamma, *beta;
  float* valid;  // 1 for the columns in use

  float mean(Vec sum) const { return total(sum) / static_cast<float>(K); }

  /// x becomes xhat; returns r.
  HWY_INLINE float normalize(float* x) const {
    Vec sum = hn::Zero(kWide), squares = hn::Zero(kWide);
    for (int64_t j = 0; j < padded; j += kLanes) sum = hn::Add(sum, load(x + j));
    const Vec average = all(mean(sum));
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec centred = hn::Mul(hn::Sub(load(x + j), average), load(valid + j));
      squares = hn::MulAdd(centred, centred, squares);
      store(centred, x + j);
    }
    const float r = 1 / std::sqrt(mean(squares) + kEps);
    for (int64_t j = 0; j < padded; j += kLanes) store(hn::Mul(load(x + j), all(r)), x + j);
    return r;
  }

  /// xhat becomes LN(x).
  HWY_INLINE void affine(float* x) const {
    for (int64_t j = 0; j < padded; j += kLanes) store(hn::MulAdd(load(x + j), load(gamma + j), load(beta + j)), x + j);
  }

  /// e = LN(x) - target; g = d 1/2 |e|^2 / dx = r (u - <u> - xhat <u xhat>), u = gamma e. Returns 1/2 |e|^2.
  HWY_INLINE float loss_gradient(const float* xhat, float r, const float* target, float* e, float* g) const {
    Vec sum = hn::Zero(kWide), product_sum = hn::Zero(kWide), squares = hn::Zero(kWide);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec x = load(xhat + j), scale = load(gamma + j);
      const Vec error = hn::Sub(hn::MulAdd(x, scale, load(beta + j)), load(target + j));
      const Vec u = hn::Mul(scale, error);
      sum = hn::Add(sum, u);
      product_sum = hn::MulAdd(u, x, product_sum);
      squares = hn::MulAdd(error, error, squares);
      store(error, e + j);
    }
    const Vec mean_u = all(mean(sum)), mean_ux = all(mean(product_sum)), scale_r = all(r);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec u = hn::Mul(load(gamma + j), load(e + j));
      const Vec inner = hn::NegMulAdd(load(xhat + j), mean_ux, hn::Sub(u, mean_u));
      store(hn::Mul(hn::Mul(inner, scale_r), load(valid + j)), g + j);
    }
    return total(squares) / 2;
  }

  /// From the gradient dy of LN(x): dx = r (h - <h> - xhat <h xhat>), h = gamma dy. Adds to dgamma and dbeta.
  HWY_INLINE void backward(const float* xhat, float r, const float* dy, float* dx, float* dgamma, float* dbeta) const {
    Vec sum = hn::Zero(kWide), product_sum = hn::Zero(kWide);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec x = load(xhat + j), y = load(dy + j), h = hn::Mul(load(gamma + j), y);
      sum = hn::Add(sum, h);
      product_sum = hn::MulAdd(h, x, product_sum);
      store(hn::MulAdd(y, x, load(dgamma + j)), dgamma + j);
      store(hn::Add(y, load(dbeta + j)), dbeta + j);
    }
    const Vec mean_h = all(mean(sum)), mean_hx = all(mean(product_sum)), scale_r = all(r);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec h = hn::Mul(load(gamma + j), load(dy + j));
      const Vec inner = hn::NegMulAdd(load(xhat + j), mean_hx, hn::Sub(h, mean_h));
      store(hn::Mul(hn::Mul(inner, scale_r), load(valid + j)), dx + j);
    }
  }

  /// Backward of loss_gradient, for G = eta g with gradient dG: dX and de (= -dtarget); adds to dgamma and dbeta;
  /// returns deta. With w = eta dG:
  ///   du = r (w - <w> - xhat <w xhat>);  de = gamma du;  dxhat = gamma de - r (<u xhat> w + <w xhat> u)
  ///   dX = r (dxhat - <dxhat> - xhat <dxhat xhat>) - r xhat <w g>
  HWY_INLINE float loss_gradient_backward(const float* xhat, float r, const float* e, const float* g, float eta,
                                          const float* dG, float* dX, float* de, float* dgamma, float* dbeta) const {
    Vec w_sum = hn::Zero(kWide), wx_sum = hn::Zero(kWide), ux_sum = hn::Zero(kWide), deta_sum = hn::Zero(kWide);
    const Vec step = all(eta);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec x = load(xhat + j), d = load(dG + j), w = hn::Mul(step, d);
      deta_sum = hn::MulAdd(d, load(g + j), deta_sum);
      w_sum = hn::Add(w_sum, w);
      wx_sum = hn::MulAdd(w, x, wx_sum);
      ux_sum = hn::MulAdd(hn::Mul(load(gamma + j), load(e + j)), x, ux_sum);
    }
    const float deta = total(deta_sum);
    const Vec mean_w = all(mean(w_sum)), mean_wx = all(mean(wx_sum)), mean_ux = all(mean(ux_sum)), scale_r = all(r);
    Vec x_sum = hn::Zero(kWide), xx_sum = hn::Zero(kWide);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec x = load(xhat + j), scale = load(gamma + j), error = load(e + j), w = hn::Mul(step, load(dG + j));
      const Vec inner = hn::NegMulAdd(x, mean_wx, hn::Sub(w, mean_w));
      const Vec du = hn::Mul(hn::Mul(inner, scale_r), load(valid + j)), d_error = hn::Mul(scale, du);
      store(d_error, de + j);
      store(hn::MulAdd(du, error, hn::MulAdd(d_error, x, load(dgamma + j))), dgamma + j);
      store(hn::Add(d_error, load(dbeta + j)), dbeta + j);
      const Vec cross = hn::MulAdd(mean_ux, w, hn::Mul(mean_wx, hn::Mul(scale, error)));
      const Vec dx = hn::NegMulAdd(scale_r, cross, hn::Mul(scale, d_error));
      x_sum = hn::Add(x_sum, dx);
      xx_sum = hn::MulAdd(dx, x, xx_sum);
      store(dx, dX + j);
    }
    const Vec mean_x = all(mean(x_sum));
    const Vec along = all(mean(xx_sum) + eta * deta / static_cast<float>(K));
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec inner = hn::NegMulAdd(load(xhat + j), along, hn::Sub(load(dX + j), mean_x));
      store(hn::Mul(hn::Mul(inner, scale_r), load(valid + j)), dX + j);
    }
    return deta;
  }
};

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_ROWS_INL_H_
