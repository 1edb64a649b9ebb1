// The layer norm of one head and the gradient of TTT's inner loss, forward and backward, on R rows at once: their sums
// do not wait for one another. Rows are `padded` floats long, zero beyond the K in use.
#if defined(LINEAL_KERNELS_CPU_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_NORM_INL_H_
#undef LINEAL_KERNELS_CPU_NORM_INL_H_
#else
#define LINEAL_KERNELS_CPU_NORM_INL_H_
#endif

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {

/// Rows `step` floats apart, of a tile or of a tensor.
template <class Float>
struct Rows {
  Float* data = nullptr;
  int64_t step = 0;

  Float* operator[](int64_t i) const { return data + i * step; }
  Rows from(int64_t i) const { return {data + i * step, step}; }
  operator Rows<const Float>() const { return {data, step}; }
};

/// f(j) for the first element of every vector of a row: N of them, or as many as n has where N is 0.
template <int N, class F>
HWY_INLINE void each_vector(int64_t n, const F& f) {
  if constexpr (N > 0) {
    LINEAL_UNROLL
    for (int i = 0; i < N; ++i) f(i * kLanes);
  } else {
    for (int64_t j = 0; j < n; j += kLanes) f(j);
  }
}

/// Rows of so many vectors stay in registers from pass to pass, four at once.
constexpr int kHeld = kAccumulators == 24 ? 4 : 0;
static_assert(kHeld * kLanes % cpu::kAlign == 0);  // no columns beyond, and what is kept is written where it lies

/// R rows that are read and written in passes: N vectors each, in registers, or of any length, where they lie.
template <int R, int N, class Float = float>
class Held {
 public:
  explicit HWY_INLINE Held(Rows<Float> at) : at_(at) {
    each_vector<N>(0, [&](int64_t j) {
      for (int i = 0; i < R; ++i) v_[j / kLanes][i] = load(at[i] + j);
    });
  }
  HWY_INLINE Vec get(int64_t j, int i) const {
    if constexpr (N > 0) return v_[j / kLanes][i];
    return load(at_[i] + j);
  }
  HWY_INLINE void set(int64_t j, int i, Vec v) {
    if constexpr (N > 0) {
      v_[j / kLanes][i] = v;
    } else {
      store(v, at_[i] + j);
    }
  }

 private:
  Rows<Float> at_;
  Vec v_[N > 0 ? N : 1][R];
};

/// LN(x) = gamma xhat + beta with xhat = (x - mean) r, r = 1 / sqrt(variance + eps).
struct Norm {
  static constexpr float kEps = 1e-6f;
  int64_t K, padded;
  float *gamma, *beta;
  float* valid;  // 1 for the columns in use

  /// The sums of the lanes of R vectors times alpha, to [4].
  template <int R>
  static HWY_INLINE void sums(const Vec (&v)[R], float alpha, float* to) {
    constexpr int second = R > 1 ? 1 : 0, third = R > 2 ? 2 : 0, fourth = R > 3 ? 3 : 0;
    const hn::FixedTag<float, 4> quad;
    hn::StoreU(hn::Mul(lane_sums(v[0], v[second], v[third], v[fourth]), hn::Set(quad, alpha)), quad, to);
  }
  /// A number for each row, in every lane.
  template <int R>
  static HWY_INLINE void spread(const float* numbers, Vec (&to)[R]) {
    for (int r = 0; r < R; ++r) to[r] = all(numbers[r]);
  }
  /// Means over rows, from vectors that add up to each row's sum.
  template <int R>
  HWY_INLINE void means(const Vec (&v)[R], Vec (&to)[R]) const {
    float numbers[4];
    sums<R>(v, 1 / static_cast<float>(K), numbers);
    spread<R>(numbers, to);
  }
  template <int R>
  static HWY_INLINE void clear(Vec (&v)[R]) {
    for (int r = 0; r < R; ++r) v[r] = hn::Zero(kWide);
  }
  /// Zero beyond the columns in use.
  template <int N>
  HWY_INLINE Vec within(Vec v, int64_t j) const {
    return N > 0 ? v : hn::Mul(v, load(valid + j));
  }

  /// f(i, R, N) for groups of R rows that cover [0, c), their vectors N or 0, both at compile time.
  template <class F>
  HWY_INLINE void each_rows(int64_t c, const F& f) const {
    if (kHeld > 0 && K == kHeld * kLanes && c % 4 == 0) {
      for (int64_t i = 0; i < c; i += 4) f(i, std::integral_constant<int, 4>(), std::integral_constant<int, kHeld>());
    } else {
      each_piece<4>(c, [&](int64_t i, auto count) { f(i, count, std::integral_constant<int, 0>()); });
    }
  }

  /// x becomes x + bias - mean; r [R] is found.
  template <int R, int N>
  HWY_INLINE void centre(Held<R, N>& x, const float* bias, float* r) const {
    Vec sum[R], squares[R];
    clear<R>(sum), clear<R>(squares);
    each_vector<N>(padded, [&](int64_t j) {
      const Vec b = load(bias + j);
      for (int i = 0; i < R; ++i) {
        const Vec y = hn::Add(x.get(j, i), b);
        x.set(j, i, y);
        sum[i] = hn::Add(sum[i], y);
      }
    });
    Vec mean[R];
    means<R>(sum, mean);
    each_vector<N>(padded, [&](int64_t j) {
      for (int i = 0; i < R; ++i) {
        const Vec centred = within<N>(hn::Sub(x.get(j, i), mean[i]), j);
        squares[i] = hn::MulAdd(centred, centred, squares[i]);
        x.set(j, i, centred);
      }
    });
    float variance[4];
    sums<R>(squares, 1 / static_cast<float>(K), variance);
    const hn::FixedTag<float, 4> quad;
    const auto root = hn::Sqrt(hn::Add(hn::LoadU(quad, variance), hn::Set(quad, kEps)));
    hn::StoreU(hn::Div(hn::Set(quad, 1.0f), root), quad, variance);
    std::copy_n(variance, R, r);
  }

  /// e = LN(x) - target, target = v - base; G = eta r (u - <u> - xhat <u xhat>), u = gamma e, which is eta times the
  /// gradient of 1/2 |e|^2 by x. normalizes: x becomes xhat = scale x, which goes around the caches to `kept` too if
  /// that is somewhere; else x is xhat. e may be G. Adds |e|^2 to `loss`.
  template <bool normalizes, int R, int N, class Float>
  HWY_INLINE void loss_gradient(Held<R, N, Float>& x, const Vec (&scale)[R], const Vec (&eta_r)[R], Rows<float> kept,
                                Rows<const float> v, Rows<const float> base, Rows<float> e, Rows<float> G,
                                Vec& loss) const {
    Vec u_sum[R], ux_sum[R];
    clear<R>(u_sum), clear<R>(ux_sum);
    Vec squares = hn::Zero(kWide);
    const float *const scales = gamma, *const shifts = beta;  // stores could change the members
    each_vector<N>(padded, [&](int64_t j) {
      const Vec g = load(scales + j), b = load(shifts + j);
      for (int i = 0; i < R; ++i) {
        Vec normal = x.get(j, i);
        if constexpr (normalizes) {
          normal = hn::Mul(normal, scale[i]);
          x.set(j, i, normal);
          if (kept.data) hn::Stream(normal, kWide, kept[i] + j);
        }
        const Vec error = hn::Add(hn::Sub(hn::MulAdd(normal, g, b), load(v[i] + j)), load(base[i] + j));
        const Vec u = hn::Mul(g, error);
        u_sum[i] = hn::Add(u_sum[i], u);
        ux_sum[i] = hn::MulAdd(u, normal, ux_sum[i]);
        squares = hn::MulAdd(error, error, squares);
        store(error, e[i] + j);
      }
    });
    loss = hn::Add(loss, squares);
    Vec mean_u[R], mean_ux[R];
    means<R>(u_sum, mean_u), means<R>(ux_sum, mean_ux);
    each_vector<N>(padded, [&](int64_t j) {
      const Vec g = load(scales + j);
      for (int i = 0; i < R; ++i) {
        const Vec centred = hn::Sub(hn::Mul(g, load(e[i] + j)), mean_u[i]);
        const Vec inner = hn::NegMulAdd(x.get(j, i), mean_ux[i], centred);
        store(within<N>(hn::Mul(inner, eta_r[i]), j), G[i] + j);
      }
    });
  }

  /// From the gradient dy of LN(x): dx = r (h - <h> - xhat <h xhat>), h = gamma dy. Adds to dgamma and dbeta.
  template <int R>
  HWY_INLINE void backward(Rows<const float> xhat, const Vec (&scale_r)[R], Rows<const float> dy, Rows<float> dx,
                           float* dgamma, float* dbeta) const {
    Vec h_sum[R], hx_sum[R];
    clear<R>(h_sum), clear<R>(hx_sum);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec g = load(gamma + j);
      Vec for_gamma = load(dgamma + j), for_beta = load(dbeta + j);
      for (int i = 0; i < R; ++i) {
        const Vec x = load(xhat[i] + j), y = load(dy[i] + j), h = hn::Mul(g, y);
        h_sum[i] = hn::Add(h_sum[i], h);
        hx_sum[i] = hn::MulAdd(h, x, hx_sum[i]);
        for_gamma = hn::MulAdd(y, x, for_gamma);
        for_beta = hn::Add(y, for_beta);
      }
      store(for_gamma, dgamma + j);
      store(for_beta, dbeta + j);
    }
    Vec mean_h[R], mean_hx[R];
    means<R>(h_sum, mean_h), means<R>(hx_sum, mean_hx);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec g = load(gamma + j), used = load(valid + j);
      for (int i = 0; i < R; ++i) {
        const Vec centred = hn::Sub(hn::Mul(g, load(dy[i] + j)), mean_h[i]);
        const Vec inner = hn::NegMulAdd(load(xhat[i] + j), mean_hx[i], centred);
        store(hn::Mul(hn::Mul(inner, scale_r[i]), used), dx[i] + j);
      }
    }
  }

  /// Backward of loss_gradient, from the gradient dG of G: dX, and de to two places, as the gradient `dbase` of the
  /// base and negated as that of v; adds to dgamma and dbeta; deta [R] is found. With w = eta dG:
  ///   du = r (w - <w> - xhat <w xhat>);  de = gamma du;  dxhat = gamma de - r (<u xhat> w + <w xhat> u)
  ///   dX = r (dxhat - <dxhat> - xhat <dxhat xhat>) - r xhat eta deta / K
  ///   deta = rowsum(dG . G / eta) = r K (<dG u> - <dG> <u> - <dG xhat> <u xhat>)
  template <int R>
  HWY_INLINE void loss_gradient_backward(Rows<const float> xhat, const float* r, const float* eta, Rows<const float> e,
                                         Rows<const float> dG, Rows<float> dX, Rows<float> dv, Rows<float> dbase,
                                         float* dgamma, float* dbeta, float* deta) const {
    Vec d_sum[R], dx_sum[R], du_sum[R], u_sum[R], ux_sum[R];
    clear<R>(d_sum), clear<R>(dx_sum), clear<R>(du_sum), clear<R>(u_sum), clear<R>(ux_sum);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec g = load(gamma + j);
      for (int i = 0; i < R; ++i) {
        const Vec x = load(xhat[i] + j), d = load(dG[i] + j), u = hn::Mul(g, load(e[i] + j));
        d_sum[i] = hn::Add(d_sum[i], d);
        dx_sum[i] = hn::MulAdd(d, x, dx_sum[i]);
        du_sum[i] = hn::MulAdd(d, u, du_sum[i]);
        u_sum[i] = hn::Add(u_sum[i], u);
        ux_sum[i] = hn::MulAdd(u, x, ux_sum[i]);
      }
    }
    float mean_d[4], mean_dx[4], mean_du[4], mean_u[4], mean_ux[4];
    const float each = 1 / static_cast<float>(K);
    sums<R>(d_sum, each, mean_d), sums<R>(dx_sum, each, mean_dx), sums<R>(du_sum, each, mean_du);
    sums<R>(u_sum, each, mean_u), sums<R>(ux_sum, each, mean_ux);
    float mean_w[R], mean_wx[R], along[R];  // along: eta deta / K
    for (int i = 0; i < R; ++i) {
      const float mean_dg = mean_du[i] - mean_d[i] * mean_u[i] - mean_dx[i] * mean_ux[i];
      deta[i] = static_cast<float>(K) * r[i] * mean_dg;
      along[i] = eta[i] * r[i] * mean_dg;
      mean_w[i] = eta[i] * mean_d[i];
      mean_wx[i] = eta[i] * mean_dx[i];
    }
    Vec step[R], scale_r[R], w_mean[R];
    spread<R>(eta, step), spread<R>(r, scale_r), spread<R>(mean_w, w_mean);
    Vec wx_mean[R], ux_mean[R];
    spread<R>(mean_wx, wx_mean), spread<R>(mean_ux, ux_mean);
    Vec x_sum[R], xx_sum[R];
    clear<R>(x_sum), clear<R>(xx_sum);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec g = load(gamma + j), used = load(valid + j);
      Vec for_gamma = load(dgamma + j), for_beta = load(dbeta + j);
      for (int i = 0; i < R; ++i) {
        const Vec x = load(xhat[i] + j), error = load(e[i] + j), w = hn::Mul(step[i], load(dG[i] + j));
        const Vec inner = hn::NegMulAdd(x, wx_mean[i], hn::Sub(w, w_mean[i]));
        const Vec du = hn::Mul(hn::Mul(inner, scale_r[i]), used), de = hn::Mul(g, du);
        store(hn::Neg(de), dv[i] + j);
        store(de, dbase[i] + j);
        for_gamma = hn::MulAdd(du, error, hn::MulAdd(de, x, for_gamma));
        for_beta = hn::Add(de, for_beta);
        const Vec cross = hn::MulAdd(ux_mean[i], w, hn::Mul(wx_mean[i], hn::Mul(g, error)));
        const Vec dx = hn::NegMulAdd(scale_r[i], cross, hn::Mul(g, de));
        x_sum[i] = hn::Add(x_sum[i], dx);
        xx_sum[i] = hn::MulAdd(dx, x, xx_sum[i]);
        store(dx, dX[i] + j);
      }
      store(for_gamma, dgamma + j);
      store(for_beta, dbeta + j);
    }
    float mean_xx[4];
    sums<R>(xx_sum, each, mean_xx);
    for (int i = 0; i < R; ++i) mean_xx[i] += along[i];
    Vec mean_x[R], mean_x_xhat[R];
    means<R>(x_sum, mean_x), spread<R>(mean_xx, mean_x_xhat);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec used = load(valid + j);
      for (int i = 0; i < R; ++i) {
        const Vec inner = hn::NegMulAdd(load(xhat[i] + j), mean_x_xhat[i], hn::Sub(load(dX[i] + j), mean_x[i]));
        store(hn::Mul(hn::Mul(inner, scale_r[i]), used), dX[i] + j);
      }
    }
  }
};

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_NORM_INL_H_
