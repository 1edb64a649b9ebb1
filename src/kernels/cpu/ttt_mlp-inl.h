// The two layers of TTT-MLP's inner model: their sizes, rows through gelu, and sums and steps on pairs of weights.
#if defined(LINEAL_KERNELS_CPU_TTT_MLP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_TTT_MLP_INL_H_
#undef LINEAL_KERNELS_CPU_TTT_MLP_INL_H_
#else
#define LINEAL_KERNELS_CPU_TTT_MLP_INL_H_
#endif

#include "kernels/cpu/gelu-inl.h"
#include "kernels/cpu/ttt-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

/// Sizes of the second layer. Rows of width F are an odd number of cache lines apart, or the same few sets of the cache
/// would hold a column.
struct Width {
  int64_t F, A;  // hidden units; and the bias
  int64_t row;
  int64_t kept;  // a row of TTTCall::U

  explicit Width(const TTTCall& call) : F(4 * call.K), A(F + call.bias), row(row_of(call.K)), kept(kept_of(call.K)) {}
  static int64_t kept_of(int64_t K) { return padded(4 * K); }
  static int64_t row_of(int64_t K) { return (padded(4 * K + 1) / kAlign | 1) * kAlign; }
};

/// y [c, n] = or += alpha x, element by element times z.
template <Store store_as>
HWY_INLINE void multiply(int64_t c, int64_t n, int64_t row, const float* x, const float* z, float* y) {
  for (int64_t i = 0; i < c; ++i) {
    for (int64_t j = i * row; j < i * row + n; j += kLanes) {
      const Vec old = store_as == Store::add ? load(y + j) : hn::Zero(kWide);
      store(hn::MulAdd(load(x + j), load(z + j), old), y + j);
    }
  }
}

/// The first layer's output u without its bias b becomes gelu'(u + b); h is gelu(u + b), and 1 for the next bias. u + b
/// goes around the caches to `kept` too, rows of width.kept, if that is somewhere.
inline void activate(int64_t c, const Width& width, const float* b, bool bias, float* u, float* h,
                     float* kept = nullptr) {
  for (int64_t i = 0; i < c; ++i, u += width.row, h += width.row) {
    for (int64_t j = 0; j < width.F; j += kLanes) {
      const Vec x = hn::Add(load(u + j), load(b + j));
      if (kept) hn::Stream(x, kWide, kept + i * width.kept + j);
      const Gelu gelu(x);
      store(gelu.value(), h + j);
      store(gelu.slope(), u + j);
    }
    if (bias) h[width.F] = 1;
  }
}

/// One [K + 1, row] and one [width.A, Kp]: weights, sums of steps or gradients of either; a bias is the last row, of W1
/// zero without one.
struct Pair {
  float *W1 = nullptr, *W2 = nullptr;
};

/// The sizes of both layers, and what is done to pairs of them.
struct Pairs {
  const TTTCall& call;
  Width width;
  int64_t K, Kp, size1, size2;

  explicit Pairs(const TTTCall& the_call)
      : call(the_call), width(call), K(call.K), Kp(padded(K)), size1((K + 1) * width.row), size2(width.A * Kp) {}

  Pair take(Scratch& scratch) const {
    float* W1 = scratch.take(size1 + 3 * width.row);  // transposing reads rows in fours
    return {W1, scratch.take(size2)};
  }
  void clear(const Pair& x) const {
    std::fill_n(x.W1, size1, 0.0f);
    std::fill_n(x.W2, size2, 0.0f);
  }
  void copy_to(const Pair& from, const Pair& to) const {
    copy(from.W1, size1, to.W1);
    copy(from.W2, size2, to.W2);
  }
  /// y += alpha x
  void add(float alpha, const Pair& x, const Pair& y) const {
    add_scaled(alpha, x.W1, size1, y.W1);
    add_scaled(alpha, x.W2, size2, y.W2);
  }
  float inner(const Pair& x, const Pair& y) const { return dot(x.W1, y.W1, size1) + dot(x.W2, y.W2, size2); }

  void load(const Layers<const float>& from, int64_t index, const Pair& to) const {
    load_layer(from[0], index, K, width.F, to.W1, width.row);
    load_layer(from[1], index, width.F, K, to.W2, Kp);
  }
  void store(const Pair& from, int64_t index, const Layers<float>& to) const {
    store_layer(from.W1, width.row, index, K, width.F, to[0]);
    store_layer(from.W2, Kp, index, width.F, K, to[1]);
  }

  /// y = or += alpha (k^T G1, h^T G2) over c tokens.
  template <Store store_as>
  void step(int64_t c, const Head& head, const float* G1, const float* h, const float* G2, float alpha,
            const Pair& y) const {
    step_first<store_as>(c, head, G1, alpha, y.W1);
    step_second<store_as>(c, h, G2, alpha, y.W2);
  }
  template <Store store_as>
  void step_first(int64_t c, const Head& head, const float* G1, float alpha, float* y) const {
    const int64_t row = width.row;
    product<store_as>(K, width.F, c, {head.k.data, 1, head.k.step}, G1, row, y, row, alpha);
    if (store_as == Store::set) std::fill_n(y + K * row, row, 0.0f);
    if (call.bias) add_rows(alpha, G1, c, row, y + K * row);
  }
  template <Store store_as>
  void step_second(int64_t c, const float* h, const float* G2, float alpha, float* y) const {
    product<store_as>(width.A, K, c, {h, 1, width.row}, G2, Kp, y, Kp, alpha);
  }
  /// Where U of the block's tokens is kept, or null.
  float* kept(const Head& head, const InnerBlock& block) const {
    return call.U ? call.U + (head.index * call.T + block.first) * width.kept : nullptr;
  }
  const float* b1(const Pair& x) const { return x.W1 + K * width.row; }
};

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_TTT_MLP_INL_H_
