// The layer norm of one head and the gradient of TTT's inner loss, forward and backward, on the rows of a block: each
// pass over all rows, four at a time, before the next, for the sums of four rows alone would be waited for. Rows are
// `padded` floats long, zero beyond the K in use.
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
  operator Rows<const Float>() const { return {data, step}; }
};

/// LN(x) = gamma xhat + beta with xhat = (x - mean) r, r = 1 / sqrt(variance + eps).
struct Norm {
  static constexpr float kEps = 1e-6f;
  int64_t K, padded;
  float *gamma = nullptr, *beta = nullptr;

  /// Of blocks of up to C rows.
  Norm(cpu::Scratch& scratch, int64_t the_K, int64_t C) : K(the_K), padded(cpu::padded(the_K)), room_(room(C)) {
    numbers_ = scratch.take(kNumbers * room_);
  }
  /// The length of an array of one number a row: passes write four at once.
  static constexpr int64_t room(int64_t C) { return cpu::padded(C + 3); }

  /// v, zero beyond the columns in use.
  HWY_INLINE Vec within(Vec v, int64_t j) const {
    if (HWY_LIKELY(j + kLanes <= K)) return v;
    return hn::IfThenElseZero(hn::FirstN(kWide, static_cast<size_t>(std::max<int64_t>(0, K - j))), v);
  }

  /// What a pass knows of a row: numbers of it in all lanes, and sums over it.
  template <int N, int S>
  struct Row {
    Vec of[N + 1], sum[S + 1];

    HWY_INLINE Row() {}  // the compiler's own would not be of the instruction set
  };
  /// A pass over c rows: f(i, j, row, columns) for the vector at column j of row i, which adds to the row's sums and to
  /// those of the column. The row has N numbers from `of`; means of its S sums go to `to`; T sums of columns are added
  /// to those of `columns`.
  template <int N, int S, int T, class F>
  HWY_INLINE void pass(int64_t c, const std::array<const float*, N>& of, const std::array<float*, S>& to,
                       const std::array<float*, T>& columns, const F& f) const {
    const int64_t width = padded;
    const float each = 1 / static_cast<float>(K);
    each_piece<4>(c, [&](int64_t first, auto count) {
      constexpr int R = decltype(count)::value;
      Row<N, S> row[R];
      LINEAL_UNROLL
      for (int i = 0; i < R; ++i) {
        LINEAL_UNROLL
        for (int n = 0; n < N; ++n) row[i].of[n] = all(of[n][first + i]);
        LINEAL_UNROLL
        for (int s = 0; s < S; ++s) row[i].sum[s] = hn::Zero(kWide);
      }
      for (int64_t j = 0; j < width; j += kLanes) {
        Vec column[T + 1];
        LINEAL_UNROLL
        for (int t = 0; t < T; ++t) column[t] = load(columns[t] + j);
        LINEAL_UNROLL
        for (int i = 0; i < R; ++i) f(first + i, j, row[i], column);
        LINEAL_UNROLL
        for (int t = 0; t < T; ++t) store(column[t], columns[t] + j);
      }
      const hn::FixedTag<float, 4> quad;
      constexpr int second = R > 1 ? 1 : 0, third = R > 2 ? 2 : 0, fourth = R > 3 ? 3 : 0;
      LINEAL_UNROLL
      for (int s = 0; s < S; ++s) {
        const auto sums = lane_sums(row[0].sum[s], row[second].sum[s], row[third].sum[s], row[fourth].sum[s]);
        hn::StoreU(hn::Mul(sums, hn::Set(quad, each)), quad, to[s] + first);
      }
    });
  }

  /// x becomes x - mean; r [room(c)] is found.
  HWY_INLINE void centre(int64_t c, Rows<float> x, float* r) const {
    float* const mean = number(0);
    pass<0, 1, 0>(c, {}, {mean}, {},
                  [=](int64_t i, int64_t j, auto& row, Vec*) { row.sum[0] = hn::Add(row.sum[0], load(x[i] + j)); });
    pass<1, 1, 0>(c, {mean}, {r}, {}, [=, this](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec centred = within(hn::Sub(load(x[i] + j), row.of[0]), j);
      row.sum[0] = hn::MulAdd(centred, centred, row.sum[0]);
      store(centred, x[i] + j);
    });
    for (int64_t i = 0; i < c; i += kLanes) {
      store(hn::Div(all(1), hn::Sqrt(hn::Add(load(r + i), all(kEps)))), r + i);
    }
  }

  /// e = LN(x) - target, target = v - base; G = eta r (u - <u> - xhat <u xhat>), u = gamma e, which is eta times the
  /// gradient of 1/2 |e|^2 by x; e may be G. normalizes: x becomes xhat = r x, which goes around the caches to `kept`
  /// too if that is somewhere; else x is xhat. Returns the sum of |e|^2 lane by lane.
  template <bool normalizes, class Float>
  HWY_INLINE Vec loss_gradient(int64_t c, Rows<Float> x, const float* r, const float* eta, Rows<float> kept,
                               Rows<const float> v, Rows<const float> base, Rows<float> e, Rows<float> G) const {
    const float *const scales = gamma, *const shifts = beta;  // stores could change the members
    float *const mean_u = number(0), *const mean_ux = number(1), *const eta_r = number(2);
    Vec squares = hn::Zero(kWide);
    pass<1, 2, 0>(c, {r}, {mean_u, mean_ux}, {}, [=, &squares](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec g = load(scales + j);
      Vec xhat = load(x[i] + j);
      if constexpr (normalizes) {
        xhat = hn::Mul(xhat, row.of[0]);
        store(xhat, x[i] + j);
        if (kept.data) hn::Stream(xhat, kWide, kept[i] + j);
      }
      const Vec error = hn::Add(hn::Sub(hn::MulAdd(xhat, g, load(shifts + j)), load(v[i] + j)), load(base[i] + j));
      const Vec u = hn::Mul(g, error);
      row.sum[0] = hn::Add(row.sum[0], u);
      row.sum[1] = hn::MulAdd(u, xhat, row.sum[1]);
      squares = hn::MulAdd(error, error, squares);
      store(error, e[i] + j);
    });
    for (int64_t i = 0; i < c; ++i) eta_r[i] = eta[i] * r[i];
    pass<3, 0, 0>(c, {mean_u, mean_ux, eta_r}, {}, {}, [=, this](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec centred = hn::Sub(hn::Mul(load(scales + j), load(e[i] + j)), row.of[0]);
      const Vec inner = hn::NegMulAdd(load(x[i] + j), row.of[1], centred);
      store(within(hn::Mul(inner, row.of[2]), j), G[i] + j);
    });
    return squares;
  }

  /// From the gradient dy of LN(x): dx = r (h - <h> - xhat <h xhat>), h = gamma dy. Adds to dgamma and dbeta.
  HWY_INLINE void backward(int64_t c, Rows<const float> xhat, const float* r, Rows<const float> dy, Rows<float> dx,
                           float* dgamma, float* dbeta) const {
    const float* const scales = gamma;
    float *const mean_h = number(0), *const mean_hx = number(1);
    pass<0, 2, 2>(c, {}, {mean_h, mean_hx}, {dgamma, dbeta}, [=](int64_t i, int64_t j, auto& row, Vec* columns) {
      const Vec x = load(xhat[i] + j), y = load(dy[i] + j), h = hn::Mul(load(scales + j), y);
      row.sum[0] = hn::Add(row.sum[0], h);
      row.sum[1] = hn::MulAdd(h, x, row.sum[1]);
      columns[0] = hn::MulAdd(y, x, columns[0]);
      columns[1] = hn::Add(y, columns[1]);
    });
    pass<3, 0, 0>(c, {mean_h, mean_hx, r}, {}, {}, [=, this](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec centred = hn::Sub(hn::Mul(load(scales + j), load(dy[i] + j)), row.of[0]);
      const Vec inner = hn::NegMulAdd(load(xhat[i] + j), row.of[1], centred);
      store(within(hn::Mul(inner, row.of[2]), j), dx[i] + j);
    });
  }

  /// Backward of loss_gradient, from the gradient dG of G: dX, and de to two places, as the gradient `dbase` of the
  /// base and negated as that of v; adds to dgamma and dbeta; deta [c] is found. With w = eta dG:
  ///   du = r (w - <w> - xhat <w xhat>);  de = gamma du;  dxhat = gamma de - r (<u xhat> w + <w xhat> u)
  ///   dX = r (dxhat - <dxhat> - xhat <dxhat xhat>) - r xhat eta deta / K
  ///   deta = rowsum(dG . G / eta) = r K (<dG u> - <dG> <u> - <dG xhat> <u xhat>)
  HWY_INLINE void loss_gradient_backward(int64_t c, Rows<const float> xhat, const float* r, const float* eta,
                                         Rows<const float> e, Rows<const float> dG, Rows<float> dX, Rows<float> dv,
                                         Rows<float> dbase, float* dgamma, float* dbeta, float* deta) const {
    const float* const scales = gamma;
    float *const mean_w = number(0), *const mean_wx = number(1), *const mean_du = number(2), *const mean_u = number(3),
                 *const mean_ux = number(4), *const mean_x = number(5), *const mean_xx = number(6);
    pass<0, 5, 0>(c, {}, {mean_w, mean_wx, mean_du, mean_u, mean_ux}, {}, [=](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec x = load(xhat[i] + j), d = load(dG[i] + j), u = hn::Mul(load(scales + j), load(e[i] + j));
      row.sum[0] = hn::Add(row.sum[0], d);
      row.sum[1] = hn::MulAdd(d, x, row.sum[1]);
      row.sum[2] = hn::MulAdd(d, u, row.sum[2]);
      row.sum[3] = hn::Add(row.sum[3], u);
      row.sum[4] = hn::MulAdd(u, x, row.sum[4]);
    });
    for (int64_t i = 0; i < c; ++i) {
      const float mean_dg = mean_du[i] - mean_w[i] * mean_u[i] - mean_wx[i] * mean_ux[i];
      deta[i] = static_cast<float>(K) * r[i] * mean_dg;
      mean_w[i] *= eta[i];
      mean_wx[i] *= eta[i];
    }
    pass<5, 2, 2>(c, {eta, r, mean_w, mean_wx, mean_ux}, {mean_x, mean_xx}, {dgamma, dbeta},
                  [=, this](int64_t i, int64_t j, auto& row, Vec* columns) {
                    const Vec &step = row.of[0], &scale = row.of[1], &w_mean = row.of[2], &wx_mean = row.of[3];
                    const Vec g = load(scales + j), x = load(xhat[i] + j), error = load(e[i] + j);
                    const Vec w = hn::Mul(step, load(dG[i] + j));
                    const Vec inner = hn::NegMulAdd(x, wx_mean, hn::Sub(w, w_mean));
                    const Vec du = within(hn::Mul(inner, scale), j), de = hn::Mul(g, du);
                    store(hn::Neg(de), dv[i] + j);
                    store(de, dbase[i] + j);
                    columns[0] = hn::MulAdd(du, error, hn::MulAdd(de, x, columns[0]));
                    columns[1] = hn::Add(de, columns[1]);
                    const Vec cross = hn::MulAdd(row.of[4], w, hn::Mul(wx_mean, hn::Mul(g, error)));
                    const Vec dx = hn::NegMulAdd(scale, cross, hn::Mul(g, de));
                    row.sum[0] = hn::Add(row.sum[0], dx);
                    row.sum[1] = hn::MulAdd(dx, x, row.sum[1]);
                    store(dx, dX[i] + j);
                  });
    for (int64_t i = 0; i < c; ++i) mean_xx[i] += eta[i] * deta[i] / static_cast<float>(K);
    pass<3, 0, 0>(c, {mean_x, mean_xx, r}, {}, {}, [=, this](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec inner = hn::NegMulAdd(load(xhat[i] + j), row.of[1], hn::Sub(load(dX[i] + j), row.of[0]));
      store(within(hn::Mul(inner, row.of[2]), j), dX[i] + j);
    });
  }

 private:
  static constexpr int64_t kNumbers = 7;

  /// [room]: numbers of rows between passes.
  float* number(int64_t i) const { return numbers_ + i * room_; }

  int64_t room_;
  float* numbers_;
};

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_NORM_INL_H_
