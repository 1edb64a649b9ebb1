// Linear attention and the delta rule, with or without decays, in chunks: some heads of one row at a time with their
// states in cache.
//
// A chunk of C tokens that starts at S [K, V]; a_i = g_0 + ... + g_i; D_ij = exp(a_i - a_j) for j <= i; d_i = exp(a_i):
//   X = [k; q],  F = [A; P] = [tril(k k^T . D, -1); tril(q k^T . D)]                  one under the other, 2C rows
//   Y = v - d k S - A U,   U = beta Y    row after row: the triangular system (1 + beta A) U = beta (v - d k S)
//   o = d q S + P U
//   S' = d_C S + (f k)^T U,   f_j = D_Cj                                                     C here is the last token
// Without beta there are no upper halves (k and A), and U = v. Without g, D = d = f = 1. With a decay per channel all
// of them are per channel too, inside of the sums over channels: F_ij = sum_c X_ic D_ijc k_jc. No exponential of a
// positive number and no difference of large sums: D, d and f are products of exp(g_i). Backward, from do and R = dS':
//   dU = P^T do + f k R
//   N  = -beta (dU + A^T N)              row after row from the last; dv = -N, dbeta = -rowsum((N / beta) . Y)
//   E  = [N; do]                         the gradient of X S d + F U, without beta of q S d + P U
//   dF = E U^T . D below the diagonal, in the upper half strictly
//   dX = d E S^T + dF k                  of k as what asks (upper half) and of q
//   dk = upper half of dX + dF^T X + f U R^T
//   dS = d_C R + X^T (d E)
// g_i is in D_tj of j < i <= t, in d_t of i <= t, in f_j of j < i, and in d_C, so that
//   dg_i = sum_{t>=i} (rowsum(X . dX) - rowsum(k . dF^T X))_t + sum_{j<i} rowsum(k . f U R^T)_j + d_C <S, R>
// where dF is without its diagonal: D_ii is 1 whatever g, and what cancels would drown the rest of strong decays.
// S and R are kept transposed there, for the products E S^T and U R^T.
#if defined(LINEAL_KERNELS_CPU_LINEAR_RECURRENCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_LINEAR_RECURRENCE_INL_H_
#undef LINEAL_KERNELS_CPU_LINEAR_RECURRENCE_INL_H_
#else
#define LINEAL_KERNELS_CPU_LINEAR_RECURRENCE_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>

#include "kernels/cpu/features-inl.h"
#include "kernels/cpu/linear_recurrence.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE::recurrence {
using namespace lineal::kernels::cpu;

constexpr int64_t kC = kChunk;

/// to [0, padded) = the n elements of x from `at` on, and zeros.
inline void load_row(const Source& x, int64_t at, int64_t n, int64_t padded, float* to) {
  if (x.bfloat16) {
    widen(static_cast<const uint16_t*>(x.data) + at, n, to);
    std::fill(to + n, to + padded, 0.0f);
  } else {
    copy_padded(static_cast<const float*>(x.data) + at, n, padded, to);
  }
}

inline void store_row(const float* from, int64_t n, const Target& x, int64_t at) {
  if (x.bfloat16) {
    narrow(from, n, static_cast<uint16_t*>(x.data) + at);
  } else {
    copy(from, n, static_cast<float*>(x.data) + at);
  }
}

/// x [0, n) = exp(x), n a multiple of kLanes; highway's has 0 for NaN, and its Ne may be false for two of them.
inline void exponentials(int64_t n, float* x) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const Vec a = load(x + j);
    store(hn::IfThenElse(hn::Eq(a, a), hn::Exp(kWide, a), a), x + j);
  }
}

/// x [0, n) *= y, n a multiple of kLanes.
inline void multiply(const float* y, int64_t n, float* x) {
  for (int64_t j = 0; j < n; j += kLanes) store(hn::Mul(load(x + j), load(y + j)), x + j);
}

/// Asks memory for what comes next, a few lines between the pieces of this chunk's products: all at once they would
/// wait for one another. They come into the second level of cache: tokens are so far apart that in the first they would
/// push one another out, and what is at hand.
class Ahead {
 public:
  /// Of an x [B, T, H, n].
  struct Rows {
    const void* x;
    int64_t row_bytes;

    Rows(const Source& source, int64_t n) : x(source.data), row_bytes(n * (source.bfloat16 ? 2 : 4)) {}
    Rows(const Target& target, int64_t n) : Rows(Source{target.data, target.bfloat16}, n) {}
  };

  /// What is needed of `rows` tokens, the first of which is at `token` in [B, T, H].
  void begin(int64_t rows, int64_t token, int64_t H, std::initializer_list<Rows> list) {
    left_ = rows, token_ = token, H_ = H;
    count_ = list.size();
    for (size_t l = 0; l < count_; ++l) {
      start_[l] = static_cast<const char*>(list.begin()[l].x);
      row_bytes_[l] = list.begin()[l].row_bytes;
    }
  }
  void some() {
    constexpr int64_t kLine = 64;
    for (int64_t i = 0; i < kRows && left_ > 0; ++i, --left_, token_ += H_) {
      for (size_t l = 0; l < count_; ++l) {
        const char* row = start_[l] + token_ * row_bytes_[l];
        for (int64_t j = 0; j < row_bytes_[l]; j += kLine) prefetch_ahead(row + j);
      }
    }
  }

 private:
  static constexpr int64_t kRows = 4;
  int64_t left_ = 0, token_ = 0, H_ = 0;
  size_t count_ = 0;
  const char* start_[8];
  int64_t row_bytes_[8];
};

/// The right side Y [R, n] becomes its solution, Y_i - sum_{j<i} A_ij U_j with U_i = beta_i Y_i, in registers. A_ij is
/// A[i * a_row + j * a_column]; the rows of Y and U are `row` apart.
template <int R, int64_t a_row, int64_t a_column>
HWY_NOINLINE void solve_block(int64_t n, const float* HWY_RESTRICT A, const float* HWY_RESTRICT beta, float* Y,
                              float* U, int64_t row) {
  for (int64_t v = 0; v < n; v += kLanes) {
    Vec y[R];
    LINEAL_UNROLL
    for (int i = 0; i < R; ++i) y[i] = load(Y + i * row + v);
    LINEAL_UNROLL
    for (int i = 0; i < R; ++i) {
      const Vec u = hn::Mul(all(beta[i]), y[i]);
      store(y[i], Y + i * row + v);
      store(u, U + i * row + v);
      LINEAL_UNROLL
      for (int t = i + 1; t < R; ++t) y[t] = hn::NegMulAdd(all(A[t * a_row + i * a_column]), u, y[t]);
    }
  }
}

/// The same of c rows, in blocks: what they take from earlier ones is a product.
template <int64_t a_row, int64_t a_column>
void solve_triangular(int64_t c, int64_t n, const float* A, const float* beta, float* Y, float* U, int64_t row) {
  constexpr int kMost = kAccumulators * 2 / 3;
  for (int64_t i = 0; i < c;) {
    const auto block = [&](auto rows) {
      constexpr int R = decltype(rows)::value;
      product<Store::add>(R, n, i, {A + i * a_row, a_row, a_column}, U, row, Y + i * row, row, -1);
      solve_block<R, a_row, a_column>(n, A + i * (a_row + a_column), beta + i, Y + i * row, U + i * row, row);
      i += R;
    };
    if (c - i >= kMost) {
      block(std::integral_constant<int, kMost>());
    } else if (c - i >= 4) {
      block(std::integral_constant<int, 4>());
    } else {
      block(std::integral_constant<int, 1>());
    }
  }
}

/// product in pieces.
template <Store store>
void product_ahead(Ahead& ahead, int64_t m, int64_t n, int64_t k, const Elements& a, const float* b, int64_t b_row,
                   float* c, int64_t c_row, float alpha = 1) {
  constexpr int64_t kPiece = 12;
  for (int64_t i = 0; i < m; i += kPiece) {
    product<store>(std::min(kPiece, m - i), n, k, a.from(i), b, b_row, c + i * c_row, c_row, alpha);
    ahead.some();
  }
}

/// What forward and backward share of one head's chunk. Columns are padded.
struct Head {
  const RecurrenceCall& call;
  int64_t K, Kp;
  bool corrects;
  Decay decay;
  float* X;          // [2C, Kp], k over q
  float* k_columns;  // [Kp, C]: k transposed
  float* F;          // [2C, C]: A over P
  float* factor;     // exp(g): [C], per channel [C, Kp]
  float* d;          // like factor
  float* f;          // [C, Kp], per channel
  float* D;          // [C, C], per token
  std::optional<Features> features;

  Head(Scratch& scratch, const RecurrenceCall& the_call)
      : call(the_call), K(call.K), Kp(padded(K)), corrects(call.beta != nullptr), decay(call.decay) {
    if (call.features) features.emplace(scratch, call);
    X = scratch.take(2 * kC * Kp);
    k_columns = scratch.take(Kp * kC);
    F = scratch.take(2 * kC * kC);
    factor = scratch.take((kC + 1) * Kp);  // the row after the last is read, for no use
    d = scratch.take(kC * Kp);
    f = scratch.take(kC * Kp);
    D = scratch.take(kC * kC);
  }

  /// Where token i of the chunk lies in [B, T, H].
  int64_t token(int64_t b, int64_t h, const RecurrenceChunk& chunk, int64_t i) const {
    return (b * call.T + chunk.first + i) * call.H + h;
  }
  /// Halves of X and F and of what is shaped like them; `rows` in use begin at `first`.
  int64_t first(int64_t c) const { return corrects ? 0 : c; }
  int64_t rows(int64_t c) const { return corrects ? 2 * c : c; }

  /// The chunk's first token is its document's.
  bool begins(int64_t b, const RecurrenceChunk& chunk) const {
    return chunk.restart || (chunk.first == 0 && call.features->fresh[b]);
  }

  /// `peak` is of features: the largest exponent before the chunk, then after it.
  void load_chunk(int64_t b, int64_t h, const RecurrenceChunk& chunk, float& peak) {
    const int64_t c = chunk.count, n = call.row_size(), np = padded(n);
    float* rows = features ? features->x() : X;
    for (int64_t i = 0; i < c; ++i) {
      const int64_t at = token(b, h, chunk, i) * n;
      load_row(call.k, at, n, np, rows + i * np);
      load_row(call.q, at, n, np, rows + (c + i) * np);
    }
    if (features) features->compute(c, begins(b, chunk), peak, X, factor);
    if (decay == Decay::token) load_decays(b, h, chunk);
    if (decay == Decay::channel) load_channel_decays(b, h, chunk);
  }

  /// f and d of the last token, with a decay per token.
  float after(int64_t c, int64_t j) const { return decay == Decay::token ? D[(c - 1) * kC + j] : 1; }
  float through(int64_t c) const { return decay == Decay::token ? d[c - 1] : 1; }
  /// d of the last token, per channel.
  const float* channels_through(int64_t c) const { return d + (c - 1) * Kp; }

  /// Rows of [2C, n] times d, with a decay per token.
  void decay_asking(int64_t c, int64_t n, float* x) const {
    if (decay != Decay::token) return;
    for (int64_t i = first(c); i < 2 * c; ++i) scale(d[i < c ? i : i - c], n, x + i * n);
  }

  /// [2C, C] = mask(X columns) . D, of an X [2C, n] whose rows ask and columns [n, C] that are stored.
  void scores(int64_t c, const float* x, int64_t n, int64_t x_row, const float* columns, float* to) const {
    const int64_t i = first(c);
    product<Store::set>(rows(c), c, n, {x + i * x_row, x_row}, columns, kC, to + i * kC, kC);
    mask(c, to);
  }

  /// F; per channel X becomes d X and k_columns the transposed f k.
  void scores(int64_t c) const {
    transpose(c, K, X, Kp, k_columns, kC);
    if (decay != Decay::channel) return scores(c, X, K, Kp, k_columns, F);
    corrects ? channel_scores<true>(c) : channel_scores<false>(c);
    mask(c, F);
    for (int64_t i = first(c); i < 2 * c; ++i) multiply(d + (i < c ? i : i - c) * Kp, Kp, X + i * Kp);
  }

 private:
  void load_decays(int64_t b, int64_t h, const RecurrenceChunk& chunk) const {
    if (!features) {
      for (int64_t i = 0; i < chunk.count; ++i) factor[i] = call.g[token(b, h, chunk, i)];
      exponentials(padded(chunk.count), factor);
    }
    for (int64_t i = 0; i < chunk.count; ++i) {
      float* row = D + i * kC;
      for (int64_t j = 0; j < i; ++j) row[j] = row[j - kC] * factor[i];
      row[i] = 1;
      d[i] = (i == 0 ? 1 : d[i - 1]) * factor[i];
    }
  }

  void load_channel_decays(int64_t b, int64_t h, const RecurrenceChunk& chunk) const {
    const int64_t c = chunk.count;
    for (int64_t i = 0; i < c; ++i) {
      float* row = factor + i * Kp;
      copy_padded(call.g + token(b, h, chunk, i) * K, K, Kp, row);
      exponentials(Kp, row);
      copy(row, Kp, d + i * Kp);
      if (i > 0) multiply(d + (i - 1) * Kp, Kp, d + i * Kp);
    }
    std::fill(factor + c * Kp, factor + kC * Kp, 1.0f);
    std::fill_n(f + (c - 1) * Kp, Kp, 1.0f);
    for (int64_t j = c - 2; j >= 0; --j) {
      copy(f + (j + 1) * Kp, Kp, f + j * Kp);
      multiply(factor + (j + 1) * Kp, Kp, f + j * Kp);
    }
  }

  /// Both halves of [2C, C] times D, zero above the diagonal and in the upper half on it.
  void mask(int64_t c, float* x) const {
    for (int64_t i = first(c); i < 2 * c; ++i) {
      const int64_t t = i < c ? i : i - c, used = i < c ? t : t + 1;
      float* row = x + i * kC;
      if (decay == Decay::token) {
        for (int64_t j = 0; j < used; ++j) row[j] *= D[t * kC + j];
      }
      std::fill(row + used, row + kC, 0.0f);
    }
  }

  /// F before its mask: from token to token the columns of k before it decay, channel by channel in registers.
  template <bool asks>
  void channel_scores(int64_t c) const {
    constexpr int kTokens = kAccumulators / 3;  // two accumulators each, and what decays
    const Vec one = all(1);
    for (int64_t t = 0; t < c; t += kTokens) {
      for (int64_t j = 0; j < std::min(c, t + kTokens); j += kLanes) {
        Vec A[kTokens], P[kTokens];
        hn::Mask<Wide> before[kTokens];
        LINEAL_UNROLL
        for (int i = 0; i < kTokens; ++i) {
          A[i] = P[i] = hn::Zero(kWide);
          before[i] = hn::FirstN(kWide, static_cast<size_t>(std::max<int64_t>(0, t + i - j)));
        }
        for (int64_t n = 0; n < K; ++n) {
          float* column = k_columns + n * kC + j;
          const float *decays = factor + t * Kp + n, *k = X + t * Kp + n, *q = k + c * Kp;
          Vec stored = load(column);
          LINEAL_UNROLL
          for (int i = 0; i < kTokens; ++i) {
            stored = hn::Mul(stored, hn::IfThenElse(before[i], all(decays[i * Kp]), one));
            if (asks) A[i] = hn::MulAdd(all(k[i * Kp]), stored, A[i]);
            P[i] = hn::MulAdd(all(q[i * Kp]), stored, P[i]);
          }
          store(stored, column);
        }
        LINEAL_UNROLL
        for (int i = 0; i < kTokens; ++i) {
          if (t + i >= c) break;
          if (asks) store(A[i], F + (t + i) * kC + j);
          store(P[i], F + (c + t + i) * kC + j);
        }
      }
    }
  }
};

/// Runs kernel(first, count) for heads [first, first + count) of [B, H] that are of one row, on all threads.
template <class Kernel, class Other>
void each_group(const RecurrenceCall& call, const Other& other) {
  constexpr int64_t kCached = 1 << 16;  // floats of state beside one another in the second level of cache
  const int64_t most = std::max<int64_t>(1, kCached / (padded(call.K) * padded(call.V)));
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Kernel kernel(scratch, call, other, std::min(most, end - begin));
    for (int64_t i = begin; i < end;) {
      const int64_t h = i % call.H, count = std::min({most, end - i, call.H - h});
      kernel.run(i / call.H, h, count);
      i += count;
    }
  });
}

}  // namespace lineal::kernels::HWY_NAMESPACE::recurrence
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_LINEAR_RECURRENCE_INL_H_
