// Random features of a chunk's keys and queries, and the gradients through them.   formulas: mixers/random_features.cc
//
// x is one key or query, u = W x, h = |x|^2 / 2, e a feature without its epsilon, t = e . d(e) the gradients of log e.
// The shift of key i is p_i = max(p_{i-1}, peak_i), that of a query its own peak, and exp(g_i) = exp(p_{i-1} - p_i).
//   positive     e = exp(u - h - p)           du = t               dh = dp = -sum t
//   hyperbolic   e = exp(+-u - h - p)         du = t_+ - t_-       dh = dp = -sum t
//   trig         e = exp(h - p) [sin, cos]    du = dsin cos - dcos sin, times exp(h - p);   dh = -dp = sum t
// dp_i goes on to peak_i where that is the maximum, split over the features that reach it, and else to p_{i-1}.
#if defined(LINEAL_KERNELS_CPU_FEATURES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_FEATURES_INL_H_
#undef LINEAL_KERNELS_CPU_FEATURES_INL_H_
#else
#define LINEAL_KERNELS_CPU_FEATURES_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/linear_recurrence.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE::recurrence {
using namespace lineal::kernels::cpu;

/// f of the generalised kernels and its derivative, of u and f(u).
struct Relu {
  static HWY_INLINE Vec value(Vec u) { return hn::Max(hn::Zero(kWide), u); }
  static HWY_INLINE Vec slope(Vec u, Vec) { return hn::IfThenElseZero(hn::Gt(u, hn::Zero(kWide)), all(1)); }
};
struct Sigmoid {
  static HWY_INLINE Vec value(Vec u) { return sigmoid(u); }
  static HWY_INLINE Vec slope(Vec, Vec f) { return hn::Mul(f, hn::Sub(all(1), f)); }
};
struct Exponential {
  static HWY_INLINE Vec value(Vec u) { return exp(u); }
  static HWY_INLINE Vec slope(Vec, Vec f) { return f; }
};
struct Absolute {
  static HWY_INLINE Vec value(Vec u) { return hn::Abs(u); }
  static HWY_INLINE Vec slope(Vec u, Vec) {
    return hn::IfThenZeroElse(hn::Eq(u, hn::Zero(kWide)), hn::CopySign(all(1), u));
  }
};
struct Cosine {
  static HWY_INLINE Vec value(Vec u) { return hn::Cos(kWide, u); }
  static HWY_INLINE Vec slope(Vec u, Vec) { return hn::Neg(hn::Sin(kWide, u)); }
};
struct HyperbolicTangent {
  static HWY_INLINE Vec value(Vec u) {  // by the exponential of what is negative: no overflow
    const Vec e = exp(hn::Mul(all(-2), hn::Abs(u)));
    return hn::CopySign(hn::Div(hn::Sub(all(1), e), hn::Add(all(1), e)), u);
  }
  static HWY_INLINE Vec slope(Vec, Vec f) { return hn::NegMulAdd(f, f, all(1)); }
};
struct Identity {
  static HWY_INLINE Vec value(Vec u) { return u; }
  static HWY_INLINE Vec slope(Vec, Vec) { return all(1); }
};

template <class F>
void with_function(FeatureCall::Map map, const F& f) {
  using Map = FeatureCall::Map;
  switch (map) {
    case Map::relu:
      return f(Relu());
    case Map::sigmoid:
      return f(Sigmoid());
    case Map::exp:
      return f(Exponential());
    case Map::abs:
      return f(Absolute());
    case Map::cos:
      return f(Cosine());
    case Map::tanh:
      return f(HyperbolicTangent());
    default:
      return f(Identity());
  }
}

class Features {
 public:
  Features(Scratch& scratch, const RecurrenceCall& call)
      : f_(*call.features), Xp_(padded(f_.K)), Mp_(padded(f_.M)), Fp_(padded(call.K)) {
    x_ = scratch.take(2 * kChunk * Xp_);
    u_ = scratch.take(2 * kChunk * Mp_);
    h_ = scratch.take(2 * kChunk);
    p_ = scratch.take(kChunk);
  }

  /// Where rows of keys or queries are to lie, padded; what follows is of those.
  float* x() const { return x_; }
  const FeatureCall& call() const { return f_; }

  /// Before anything is asked about rows [0, rows).
  void project(int64_t rows) const {
    product<Store::set>(rows, f_.M, f_.K, {x_, Xp_}, f_.columns, Mp_, u_, Mp_);
    if (!f_.is_softmax()) return;
    for (int64_t i = 0; i < rows; ++i) h_[i] = f_.half * dot(x_ + i * Xp_, x_ + i * Xp_, Xp_);
  }
  /// The largest exponent of row i, of softmax features.
  float peak(int64_t i) const { return f_.map == FeatureCall::trig ? h_[i] : largest(u_ + i * Mp_) - h_[i]; }
  /// X [Fp] = phi of row i, softmax features shifted; without their epsilon on demand.
  void fill(int64_t i, float shift, float* X, bool with_epsilon = true) const {
    if (f_.is_softmax()) return softmax_features(u_ + i * Mp_, h_[i], shift, with_epsilon ? f_.epsilon : 0, X);
    with_function(f_.map, [&](auto function) { apply(function, u_ + i * Mp_, X); });
  }

  /// From the gradient d of phi to du [Mp]; of softmax features the sum of t.
  float gradient(int64_t i, const float* phi, const float* d, float* du) const {
    if (f_.is_softmax()) return softmax_gradient(phi, d, du);
    with_function(f_.map, [&](auto function) { slopes(function, u_ + i * Mp_, phi, d, du); });
    return 0;
  }
  /// The same of a query, shifted by its own peak.
  void gradient_of_query(int64_t i, const float* phi, const float* d, float* du) const {
    const float sum = gradient(i, phi, d, du);
    if (f_.is_softmax() && f_.map != FeatureCall::trig) share(-sum, i, du);
  }
  /// Adds what the peak of row i passes on to du, in equal parts where u reaches its largest value; returns dh.
  float gradient_of_peak(int64_t i, float d, float* du) const {
    if (f_.map == FeatureCall::trig) return d;
    share(d, i, du);
    return -d;
  }
  /// dx [rows, Xp] from du [rows, Mp] and dh [rows].
  void finish(int64_t rows, const float* du, const float* dh, float* dx) const {
    product<Store::set>(rows, f_.K, f_.M, {du, Mp_}, f_.rows, Xp_, dx, Xp_);
    for (int64_t i = 0; i < rows; ++i) add_scaled(2 * f_.half * dh[i], x_ + i * Xp_, Xp_, dx + i * Xp_);
  }

  /// X [2c, Fp] = phi of c keys and after them c queries, and factor [c] = exp(g). `running` is p before the keys and
  /// becomes the one after them; with `begins` the first of them is its document's.
  void compute(int64_t c, bool begins, float& running, float* X, float* factor) {
    project(2 * c);
    for (int64_t i = 0; i < 2 * c; ++i) {
      float shift = f_.is_softmax() ? peak(i) : 0;
      if (f_.is_softmax() && i < c) {
        const bool first = begins && i == 0;
        if (!first) shift = std::max(running, shift);
        factor[i] = first ? 1 : std::exp(running - shift);
        running = p_[i] = shift;
      }
      fill(i, shift, X + i * Fp_);
    }
  }
  /// p after each of the keys, after compute.
  const float* peaks() const { return p_; }

  /// After compute, from gradients of phi to those of x: dx [2c, Xp]. dg [c]; `before` is p before the keys, `dp` the
  /// gradient of p after them and becomes that of p before them.
  void gradients(int64_t c, bool begins, float before, const float* X, const float* of_keys, const float* of_queries,
                 const float* dg, float& dp, float* du, float* dx) {
    float dh[2 * kChunk] = {};
    for (int64_t i = 0; i < c; ++i) {
      gradient_of_query(c + i, X + (c + i) * Fp_, of_queries + i * Fp_, du + (c + i) * Mp_);
    }
    for (int64_t i = c - 1; i >= 0; --i) {
      const float sum = gradient(i, X + i * Fp_, of_keys + i * Fp_, du + i * Mp_);
      if (!f_.is_softmax()) continue;
      const bool first = begins && i == 0;
      dp -= first ? sum : sum + dg[i];
      dh[i] = f_.map == FeatureCall::trig ? sum : -sum;
      if (first || p_[i] > (i == 0 ? before : p_[i - 1])) {
        dh[i] += gradient_of_peak(i, std::exchange(dp, 0.0f), du + i * Mp_);
      }
      if (!first) dp += dg[i];
    }
    finish(2 * c, du, dh, dx);
  }

 private:
  /// max_j u_j, of hyperbolic features max_j |u_j|.
  float largest(const float* u) const {
    Vec most = all(-std::numeric_limits<float>::infinity());
    for (int64_t j = 0; j < f_.M; j += kLanes) {
      const auto used = hn::FirstN(kWide, static_cast<size_t>(f_.M - j));
      most = hn::IfThenElse(used, hn::Max(most, sized(load(u + j))), most);
    }
    return hn::GetLane(hn::MaxOfLanes(kWide, most));
  }
  Vec sized(Vec u) const { return f_.map == FeatureCall::hyperbolic ? hn::Abs(u) : u; }

  void softmax_features(const float* u, float h, float shift, float added, float* X) const {
    const Vec scale = all(f_.scale), epsilon = all(f_.scale * added);
    const Vec amplitude = all(f_.scale * std::exp(h - shift)), less = all(h + shift);
    for (int64_t j = 0; j < f_.M; j += kLanes) {
      const Vec u_j = load(u + j);
      const auto put = [&](Vec feature, float* to) { store_lanes(feature, to + j, f_.M - j); };
      if (f_.map == FeatureCall::trig) {
        put(hn::Mul(amplitude, hn::Sin(kWide, u_j)), X);
        put(hn::Mul(amplitude, hn::Cos(kWide, u_j)), X + f_.M);
        continue;
      }
      put(hn::MulAdd(scale, exp(hn::Sub(u_j, less)), epsilon), X);
      if (f_.map == FeatureCall::hyperbolic) {
        put(hn::MulAdd(scale, exp(hn::Neg(hn::Add(u_j, less))), epsilon), X + f_.M);
      }
    }
  }

  /// du [Mp], and the sum of t.
  float softmax_gradient(const float* phi, const float* d, float* du) const {
    const Vec epsilon = all(f_.scale * f_.epsilon);
    Vec sum = hn::Zero(kWide);
    for (int64_t j = 0; j < f_.M; j += kLanes) {
      const auto part = [&](const float* x) { return load_lanes(x + j, f_.M - j); };
      Vec u;
      if (f_.map == FeatureCall::trig) {
        const Vec sine = part(phi), cosine = part(phi + f_.M), of_sine = part(d), of_cosine = part(d + f_.M);
        u = hn::NegMulAdd(of_cosine, sine, hn::Mul(of_sine, cosine));
        sum = hn::Add(sum, hn::MulAdd(of_sine, sine, hn::Mul(of_cosine, cosine)));
      } else {
        u = hn::Mul(part(d), hn::Sub(part(phi), epsilon));
        sum = hn::Add(sum, u);
        if (f_.map == FeatureCall::hyperbolic) {
          const Vec minus = hn::Mul(part(d + f_.M), hn::Sub(part(phi + f_.M), epsilon));
          sum = hn::Add(sum, minus);
          u = hn::Sub(u, minus);
        }
      }
      hn::StoreU(u, kWide, du + j);
    }
    return total(sum);
  }

  /// Adds d to du where u of row i reaches its largest value, in equal parts.
  void share(float d, int64_t i, float* du) const {
    if (d == 0) return;
    const float *u = u_ + i * Mp_, most = largest(u);
    float count = 0;
    for (int64_t j = 0; j < f_.M; ++j) count += reach(u[j]) == most;
    for (int64_t j = 0; j < f_.M; ++j) {
      if (reach(u[j]) == most) du[j] += (f_.map == FeatureCall::hyperbolic && u[j] < 0 ? -d : d) / count;
    }
  }
  float reach(float u) const { return f_.map == FeatureCall::hyperbolic ? std::abs(u) : u; }

  template <class Function>
  void apply(Function, const float* u, float* X) const {
    const Vec epsilon = all(f_.epsilon);
    for (int64_t j = 0; j < f_.M; j += kLanes) {
      store_lanes(hn::Add(Function::value(load(u + j)), epsilon), X + j, f_.M - j);
    }
  }

  template <class Function>
  void slopes(Function, const float* u, const float* phi, const float* d, float* du) const {
    const Vec epsilon = all(f_.epsilon);
    for (int64_t j = 0; j < f_.M; j += kLanes) {
      const Vec f = hn::Sub(load_lanes(phi + j, f_.M - j), epsilon);
      store_lanes(hn::Mul(load_lanes(d + j, f_.M - j), Function::slope(load(u + j), f)), du + j, f_.M - j);
    }
  }

  const FeatureCall& f_;
  int64_t Xp_, Mp_, Fp_;
  float* x_;  // [2C, Xp]
  float* u_;  // [2C, Mp]
  float* h_;  // [2C]
  float* p_;  // [C]
};

}  // namespace lineal::kernels::HWY_NAMESPACE::recurrence
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_FEATURES_INL_H_
