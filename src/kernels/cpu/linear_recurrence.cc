// Linear attention and the delta rule, with or without a decay per token, in chunks: one (row, head) at a time with its
// state in cache.
//
// A chunk of C tokens that starts at S [K, V]; a_i = g_0 + ... + g_i; D_ij = exp(a_i - a_j) for j <= i; d_i = exp(a_i):
//   X = [k; q],  F = [A; P] = [tril(k k^T . D, -1); tril(q k^T . D)]                  one under the other, 2C rows
//   Y = v - d k S - A U,   U = beta Y    row after row: the triangular system (1 + beta A) U = beta (v - d k S)
//   o = d q S + P U
//   S' = d_C S + (f k)^T U,   f_j = D_Cj                                                     C here is the last token
// Without beta there are no upper halves (k and A), and U = v. Without g, D = d = f = 1.
// Backward, from do and R = dS':
//   dU = P^T do + f k R
//   N  = -beta (dU + A^T N)              row after row from the last; dv = -N, dbeta = -rowsum((N / beta) . Y)
//   E  = [N; do]                         the gradient of X S d + F U, without beta of q S d + P U
//   dF = E U^T . D below the diagonal, in the upper half strictly
//   dX = d E S^T + dF k                  of k as what asks (upper half) and of q
//   dk = upper half of dX + dk*;         dk* = dF^T X + f U R^T, of k as what is stored
//   dS = d_C R + X^T (d E)
// Whatever asks carries exp(a_i) and whatever is stored exp(-a_j), S' carries exp(a_C), so that
//   da = rowsum(X . dX), both halves, - rowsum(k . dk*);   da_C += <S', R> = d_C <S, R> + sum((f k R) . U)
//   dg_i = da_i + ... + da_C
// S and R are kept transposed there, for the products E S^T and U R^T.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_recurrence.cc"
#include <hwy/foreach_target.h>

#include <hwy/cache_control.h>

#include "kernels/cpu/linear_recurrence.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

constexpr int64_t kC = kChunk;
constexpr int64_t kSolved = 8;  // rows of the triangular system between two products

/// Asks memory for what the next chunk reads and writes, a few lines between the pieces of this one's products: all at
/// once they would wait for one another.
class Ahead {
 public:
  /// Of an x [B, T, H, n].
  struct Rows {
    const float* x;
    int64_t n;
  };

  /// What is needed of `rows` tokens, the first of which is at `token` in [B, T, H].
  void begin(int64_t rows, int64_t token, int64_t H, std::initializer_list<Rows> list) {
    left_ = rows, token_ = token, H_ = H;
    count_ = list.size();
    std::copy(list.begin(), list.end(), list_);
  }
  void some() {
    for (int64_t i = 0; i < kRows && left_ > 0; ++i, --left_, token_ += H_) {
      for (size_t l = 0; l < count_; ++l) {
        const float* row = list_[l].x + token_ * list_[l].n;
        for (int64_t j = 0; j < list_[l].n; j += kAlign) hwy::Prefetch(row + j);
      }
    }
  }

 private:
  static constexpr int64_t kRows = 4;
  int64_t left_ = 0, token_ = 0, H_ = 0;
  size_t count_ = 0;
  Rows list_[8];
};

/// product in pieces.
template <Store store>
void product_ahead(Ahead& ahead, int64_t m, int64_t n, int64_t k, Elements a, const float* b, int64_t b_row, float* c,
                   int64_t c_row) {
  constexpr int64_t kPiece = 12;
  for (int64_t i = 0; i < m; i += kPiece, a.data += kPiece * a.row, c += kPiece * c_row) {
    product<store>(std::min(kPiece, m - i), n, k, a, b, b_row, c, c_row);
    ahead.some();
  }
}

/// What forward and backward share of one head. Columns are padded.
struct Head {
  const RecurrenceCall& call;
  int64_t K, V, Kp, Vp;
  bool corrects, decays;
  float* X;          // [2C, Kp], k over q
  float* k_columns;  // [Kp, C]: k transposed
  float* F;          // [2C, C]: A over P
  float* D;          // [C, C]
  float* d;          // [C]

  Head(Scratch& scratch, const RecurrenceCall& the_call)
      : call(the_call),
        K(call.K),
        V(call.V),
        Kp(padded(K)),
        Vp(padded(V)),
        corrects(call.beta != nullptr),
        decays(call.g != nullptr) {
    X = scratch.take(2 * kC * Kp);
    k_columns = scratch.take(Kp * kC);
    F = scratch.take(2 * kC * kC);
    D = scratch.take(kC * kC);
    d = scratch.take(kC);
  }

  /// Where token i of the chunk lies in [B, T, H].
  int64_t token(int64_t b, int64_t h, const RecurrenceChunk& chunk, int64_t i) const {
    return (b * call.T + chunk.first + i) * call.H + h;
  }
  /// Halves of X and F and of what is shaped like them; `rows` in use begin at `first`.
  int64_t first(int64_t c) const { return corrects ? 0 : c; }
  int64_t rows(int64_t c) const { return corrects ? 2 * c : c; }

  void load(int64_t b, int64_t h, const RecurrenceChunk& chunk) const {
    const int64_t c = chunk.count;
    for (int64_t i = 0; i < c; ++i) {
      const int64_t at = token(b, h, chunk, i) * K;
      copy_padded(call.k + at, K, Kp, X + i * Kp);
      copy_padded(call.q + at, K, Kp, X + (c + i) * Kp);
    }
    if (!decays) return;
    for (int64_t i = 0; i < c; ++i) {  // products of factors: no difference of large sums
      float* row = D + i * kC;
      const float factor = std::exp(call.g[token(b, h, chunk, i)]);
      for (int64_t j = 0; j < i; ++j) row[j] = row[j - kC] * factor;
      row[i] = 1;
      d[i] = (i == 0 ? 1 : d[i - 1]) * factor;
    }
  }
  float after(int64_t c, int64_t j) const { return decays ? D[(c - 1) * kC + j] : 1; }  // f
  float through(int64_t c) const { return decays ? d[c - 1] : 1; }

  /// Rows of [2C, n] times d.
  void decay(int64_t c, int64_t n, float* x) const {
    if (!decays) return;
    for (int64_t i = first(c); i < 2 * c; ++i) scale(d[i < c ? i : i - c], n, x + i * n);
  }

  /// Both halves of [2C, C] times D, zero above the diagonal and in the upper half on it.
  void mask(int64_t c, float* x) const {
    for (int64_t i = first(c); i < 2 * c; ++i) {
      const int64_t t = i < c ? i : i - c, used = i < c ? t : t + 1;
      float* row = x + i * kC;
      if (decays) {
        for (int64_t j = 0; j < used; ++j) row[j] *= D[t * kC + j];
      }
      std::fill(row + used, row + kC, 0.0f);
    }
  }

  /// [2C, C] = mask(X columns), of an X [2C, n] whose rows ask and columns [n, C] that are stored.
  void scores(int64_t c, const float* x, int64_t n, int64_t x_row, const float* columns, float* to) const {
    for (int64_t half = corrects ? 0 : 1; half < 2; ++half) {
      for (int64_t j = 0; j < c; j += kAlign) {  // what lies above the diagonal is left out
        const int64_t i = half * c + j;
        product<Store::set>(c - j, std::min(kAlign, c - j), n, {x + i * x_row, x_row}, columns + j, kC, to + i * kC + j,
                            kC);
      }
    }
    mask(c, to);
  }

  void scores(int64_t c) const {
    transpose(c, K, X, Kp, k_columns, kC);
    scores(c, X, K, Kp, k_columns, F);
  }
};

// ---- forward -------------------------------------------------------------------------------------------------------

class Forward {
 public:
  Forward(Scratch& scratch, const RecurrenceCall& call, const RecurrenceResult& result)
      : call_(call), result_(result), head_(scratch, call), K_(head_.K), V_(head_.V), Kp_(head_.Kp), Vp_(head_.Vp) {
    S_ = scratch.take(K_ * Vp_);
    U_ = scratch.take(kC * Vp_);
    Z_ = scratch.take(2 * kC * Vp_);
  }

  void row(int64_t b, int64_t h) {
    const int64_t index = b * call_.H + h, size = K_ * V_;
    for (int64_t i = 0; i < K_; ++i) copy_padded(call_.S + index * size + i * V_, V_, Vp_, S_ + i * Vp_);
    for (int64_t n = 0; n < call_.row_chunks(b); ++n) {
      const RecurrenceChunk& chunk = call_.chunks[static_cast<size_t>(call_.row_begin(b) + n)];
      if (chunk.restart) std::fill_n(S_, K_ * Vp_, 0.0f);
      if (call_.states && n % call_.keep == 0) {
        store_state(call_.states + (call_.saved_before(b, h) + n / call_.keep) * size);
      }
      if (n + 1 < call_.row_chunks(b)) {
        const RecurrenceChunk& next = *(&chunk + 1);
        ahead_.begin(next.count, head_.token(b, h, next, 0), call_.H,
                     {{call_.q, K_}, {call_.k, K_}, {call_.v, V_}, {result_.o, V_}});
      }
      run(b, h, chunk);
    }
    store_state(result_.S + index * size);
  }

 private:
  void store_state(float* to) const {
    for (int64_t i = 0; i < K_; ++i) copy(S_ + i * Vp_, V_, to + i * V_);
  }

  void run(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count, first = head_.first(c);
    head_.load(b, h, chunk);
    head_.scores(c);
    product_ahead<Store::set>(ahead_, head_.rows(c), V_, K_, {head_.X + first * Kp_, Kp_}, S_, Vp_, Z_ + first * Vp_,
                              Vp_);
    head_.decay(c, Vp_, Z_);
    for (int64_t i = 0; i < c; ++i) {
      copy_padded(call_.v + head_.token(b, h, chunk, i) * V_, V_, Vp_, U_ + i * Vp_);
      if (head_.corrects) add_scaled(-1, Z_ + i * Vp_, Vp_, U_ + i * Vp_);
    }
    if (head_.corrects) solve(b, h, chunk);
    float* o = Z_ + c * Vp_;
    product<Store::add>(c, V_, c, {head_.F + c * kC, kC}, U_, Vp_, o, Vp_, 1, /*lower=*/true);
    for (int64_t i = 0; i < c; ++i) copy(o + i * Vp_, V_, result_.o + head_.token(b, h, chunk, i) * V_);
    if (head_.decays) {
      for (int64_t i = 0; i < c; ++i) scale(head_.after(c, i), Vp_, U_ + i * Vp_);
      scale(head_.through(c), K_ * Vp_, S_);
    }
    product_ahead<Store::add>(ahead_, K_, V_, c, {head_.X, 1, Kp_}, U_, Vp_, S_, Vp_);
  }

  /// U from v - d k S.
  void solve(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count;
    const float* A = head_.F;
    for (int64_t first = 0; first < c; first += kSolved) {
      const int64_t last = std::min(c, first + kSolved);
      product<Store::add>(last - first, V_, first, {A + first * kC, kC}, U_, Vp_, U_ + first * Vp_, Vp_, -1);
      for (int64_t i = first; i < last; ++i) {
        float* U = U_ + i * Vp_;
        product<Store::add>(1, V_, i - first, {A + i * kC + first, kC}, U_ + first * Vp_, Vp_, U, Vp_, -1);
        const int64_t token = head_.token(b, h, chunk, i);
        if (call_.errors) copy(U, V_, call_.errors + token * V_);
        scale(call_.beta[token], Vp_, U);
      }
    }
  }

  const RecurrenceCall& call_;
  const RecurrenceResult& result_;
  Head head_;
  Ahead ahead_;
  int64_t K_, V_, Kp_, Vp_;
  float* S_;  // [K, Vp]
  float* U_;  // [C, Vp]
  float* Z_;  // [2C, Vp]: d X S
};

// ---- backward ------------------------------------------------------------------------------------------------------

class Backward {
 public:
  Backward(Scratch& scratch, const RecurrenceCall& call, const RecurrenceGradients& gradients)
      : call_(call),
        d_(gradients),
        head_(scratch, call),
        K_(head_.K),
        V_(head_.V),
        Kp_(head_.Kp),
        Vp_(head_.Vp),
        state_size_(Vp_ * Kp_) {
    states_ = scratch.take(call.keep * state_size_);
    R_ = scratch.take(state_size_);
    work_ = scratch.take(state_size_);
    Y_ = scratch.take(kC * Vp_);
    U_ = scratch.take(kC * Vp_);
    dU_ = scratch.take(kC * Vp_);
    E_ = scratch.take(2 * kC * Vp_);
    columns_ = scratch.take(Vp_ * kC);
    dF_ = scratch.take(2 * kC * kC);
    dX_ = scratch.take(2 * kC * Kp_);
    stored_ = scratch.take(kC * Kp_);
    da_ = scratch.take(kC);
  }

  void row(int64_t b, int64_t h) {
    const int64_t index = b * call_.H + h, size = K_ * V_, keep = call_.keep, count = call_.row_chunks(b);
    load_state(d_.S_after + index * size, R_);
    for (int64_t first = (count - 1) / keep * keep; first >= 0; first -= keep) {
      const int64_t last = std::min(count, first + keep);
      const auto state = [&](int64_t n) { return states_ + (n - first) * state_size_; };
      load_state(call_.states + (call_.saved_before(b, h) + first / keep) * size, state(first));
      for (int64_t n = first; n + 1 < last; ++n) advance(b, h, n, state(n), state(n + 1));
      for (int64_t n = last - 1; n >= first; --n) {
        if (n > 0) {
          const RecurrenceChunk& next = chunk(b, n - 1);
          ahead_.begin(next.count, head_.token(b, h, next, 0), call_.H,
                       {{call_.q, K_},
                        {call_.k, K_},
                        {head_.corrects ? call_.errors : call_.v, V_},
                        {d_.o, V_},
                        {d_.q, K_},
                        {d_.k, K_},
                        {d_.v, V_}});
        }
        run(b, h, chunk(b, n), state(n));
      }
    }
    transpose(V_, K_, R_, Kp_, work_, Vp_);
    for (int64_t i = 0; i < K_; ++i) copy(work_ + i * Vp_, V_, d_.S + index * size + i * V_);
  }

 private:
  const RecurrenceChunk& chunk(int64_t b, int64_t n) const {
    return call_.chunks[static_cast<size_t>(call_.row_begin(b) + n)];
  }

  /// [Vp, Kp] = from [K, V] transposed.
  void load_state(const float* from, float* to) const {
    for (int64_t i = 0; i < K_; ++i) copy_padded(from + i * V_, V_, Vp_, work_ + i * Vp_);
    transpose(K_, V_, work_, Vp_, to, Kp_);
  }

  /// S^T at the start of chunk n + 1 from that of chunk n.
  void advance(int64_t b, int64_t h, int64_t n, const float* S, float* next) {
    if (chunk(b, n + 1).restart) {
      std::fill_n(next, state_size_, 0.0f);
      return;
    }
    const int64_t c = chunk(b, n).count;
    head_.load(b, h, chunk(b, n));
    recall(b, h, chunk(b, n));
    decay_stored(c);
    copy(S, state_size_, next);
    if (head_.decays) scale(head_.through(c), state_size_, next);
    product<Store::add>(V_, K_, c, {U_, 1, Vp_}, head_.X, Kp_, next, Kp_);
  }

  /// U and Y, from what forward saved.
  void recall(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t token = head_.token(b, h, chunk, i);
      float *U = U_ + i * Vp_, *Y = Y_ + i * Vp_;
      copy_padded((head_.corrects ? call_.errors : call_.v) + token * V_, V_, Vp_, U);
      if (!head_.corrects) continue;
      copy(U, Vp_, Y);
      scale(call_.beta[token], Vp_, U);
    }
  }

  /// U becomes f U.
  void decay_stored(int64_t c) {
    if (!head_.decays) return;
    for (int64_t i = 0; i < c; ++i) scale(head_.after(c, i), Vp_, U_ + i * Vp_);
  }

  void run(int64_t b, int64_t h, const RecurrenceChunk& chunk, const float* S) {
    const int64_t c = chunk.count, first = head_.first(c), rows = head_.rows(c);
    float *E = E_ + first * Vp_, *dX = dX_ + first * Kp_;
    const float *X = head_.X + first * Kp_, *dF = dF_ + first * kC;
    head_.load(b, h, chunk);
    head_.scores(c);
    recall(b, h, chunk);
    for (int64_t i = 0; i < c; ++i) {
      copy_padded(d_.o + head_.token(b, h, chunk, i) * V_, V_, Vp_, E_ + (c + i) * Vp_);
    }
    const float through = values(c, S);
    if (head_.corrects) {
      solve(b, h, chunk);
    } else {
      for (int64_t i = 0; i < c; ++i) copy(dU_ + i * Vp_, V_, d_.v + head_.token(b, h, chunk, i) * V_);
    }
    transpose(c, V_, U_, Vp_, columns_, kC);
    head_.scores(c, E_, V_, Vp_, columns_, dF_);
    head_.decay(c, Vp_, E_);
    product_ahead<Store::set>(ahead_, rows, K_, V_, {E, Vp_}, S, Kp_, dX, Kp_);
    for (int64_t half = first; half < 2 * c; half += c) {
      product<Store::add>(c, K_, c, {dF_ + half * kC, kC}, head_.X, Kp_, dX_ + half * Kp_, Kp_, 1, /*lower=*/true);
    }
    product<Store::set>(c, K_, rows, {dF, 1, kC}, X, Kp_, stored_, Kp_);
    decay_stored(c);
    product_ahead<Store::add>(ahead_, c, K_, V_, {U_, Vp_}, R_, Kp_, stored_, Kp_);
    give(b, h, chunk, through);
    if (chunk.restart) {
      std::fill_n(R_, state_size_, 0.0f);
    } else {
      if (head_.decays) scale(head_.through(c), state_size_, R_);
      product_ahead<Store::add>(ahead_, V_, K_, rows, {E, 1, Vp_}, X, Kp_, R_, Kp_);
    }
  }

  /// dU; returns <S', R> where it counts.
  float values(int64_t c, const float* S) {
    product_ahead<Store::set>(ahead_, V_, c, K_, {R_, Kp_}, head_.k_columns, kC, columns_, kC);  // (k R)^T
    transpose(V_, c, columns_, kC, dU_, Vp_);
    float through = 0;
    if (head_.decays) {
      for (int64_t i = 0; i < c; ++i) {
        scale(head_.after(c, i), Vp_, dU_ + i * Vp_);
        through += dot(dU_ + i * Vp_, U_ + i * Vp_, Vp_);
      }
      through += head_.through(c) * dot(S, R_, state_size_);
    }
    product<Store::add>(c, V_, c, {head_.F + c * kC, 1, kC}, E_ + c * Vp_, Vp_, dU_, Vp_);
    return through;
  }

  /// N, and the gradients of v and beta.
  void solve(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count;
    const float* A = head_.F;
    const auto add_later = [&](int64_t begin, int64_t end, int64_t from, int64_t to) {
      product<Store::add>(end - begin, V_, to - from, {A + from * kC + begin, 1, kC}, E_ + from * Vp_, Vp_,
                          dU_ + begin * Vp_, Vp_);
    };
    for (int64_t first = (c - 1) / kSolved * kSolved; first >= 0; first -= kSolved) {
      const int64_t last = std::min(c, first + kSolved);
      add_later(first, last, last, c);
      for (int64_t i = last - 1; i >= first; --i) {
        add_later(i, i + 1, i + 1, last);
        const int64_t token = head_.token(b, h, chunk, i);
        float *dU = dU_ + i * Vp_, *N = E_ + i * Vp_;
        d_.beta[token] = dot(dU, Y_ + i * Vp_, Vp_);
        scale(call_.beta[token], Vp_, dU);
        copy(dU, V_, d_.v + token * V_);
        copy(dU, Vp_, N);
        scale(-1, Vp_, N);
      }
    }
  }

  /// The gradients of q, k and g.
  void give(int64_t b, int64_t h, const RecurrenceChunk& chunk, float through) {
    const int64_t c = chunk.count;
    for (int64_t i = 0; i < c; ++i) {
      const int64_t at = head_.token(b, h, chunk, i) * K_;
      const float *k = head_.X + i * Kp_, *q = k + c * Kp_, *dq = dX_ + (c + i) * Kp_;
      float* dk = stored_ + i * Kp_;
      if (head_.decays) da_[i] = dot(q, dq, K_) - dot(k, dk, K_);
      if (head_.corrects) {
        if (head_.decays) da_[i] += dot(k, dX_ + i * Kp_, K_);
        add_scaled(1, dX_ + i * Kp_, Kp_, dk);
      }
      copy(dk, K_, d_.k + at);
      copy(dq, K_, d_.q + at);
    }
    if (!head_.decays) return;
    float sum = through;
    for (int64_t i = c - 1; i >= 0; --i) d_.g[head_.token(b, h, chunk, i)] = sum += da_[i];
  }

  const RecurrenceCall& call_;
  const RecurrenceGradients& d_;
  Head head_;
  Ahead ahead_;
  int64_t K_, V_, Kp_, Vp_, state_size_;
  float* states_;        // [keep][Vp, Kp]: S^T at the start of each chunk of a group
  float* R_;             // [Vp, Kp]: R^T
  float* work_;          // [Kp, Vp]
  float *Y_, *U_, *dU_;  // [C, Vp]
  float* E_;             // [2C, Vp]
  float* columns_;       // [Vp, C]
  float* dF_;            // [2C, C]
  float *dX_, *stored_;  // [2C, Kp]; [C, Kp]: dk*
  float* da_;            // [C]
};

template <class Kernel, class Other>
void each_head(const RecurrenceCall& call, const Other& other) {
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Kernel kernel(scratch, call, other);
    for (int64_t i = begin; i < end; ++i) kernel.row(i / call.H, i % call.H);
  });
}

void forward(const RecurrenceCall& call, const RecurrenceResult& result) { each_head<Forward>(call, result); }

void backward(const RecurrenceCall& call, const RecurrenceGradients& gradients) {
  each_head<Backward>(call, gradients);
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

namespace cpu {

void linear_recurrence_forward(const RecurrenceCall& call, const RecurrenceResult& result) {
  HWY_DYNAMIC_DISPATCH(forward)(call, result);
}

void linear_recurrence_backward(const RecurrenceCall& call, const RecurrenceGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
