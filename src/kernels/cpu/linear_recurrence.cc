// The forward pass of the linear recurrences.                                        formulas: linear_recurrence-inl.h
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_recurrence.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/linear_recurrence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace recurrence;

class Forward {
 public:
  /// For `heads` at once, and columns [column, column + columns) of V: what they hold depends on no other column.
  Forward(Scratch& scratch, const RecurrenceCall& call, const RecurrenceResult& result, int64_t heads, int64_t column,
          int64_t columns)
      : call_(call),
        result_(result),
        head_(scratch, call),
        K_(head_.K),
        V_(columns),
        column_(column),
        Kp_(head_.Kp),
        Vp_(padded(columns)) {
    states_ = scratch.take(heads * K_ * Vp_);
    Y_ = scratch.take(kC * Vp_);
    U_ = scratch.take(kC * Vp_);
    beta_ = scratch.take(kC);
    o_ = scratch.take(kC * Vp_);
    peaks_ = scratch.take(heads);
  }
  Forward(Scratch& scratch, const RecurrenceCall& call, const RecurrenceResult& result, int64_t heads)
      : Forward(scratch, call, result, heads, 0, call.V) {}

  /// Chunk after chunk, and in each of them head after head: memory is read in its order.
  void run(int64_t b, int64_t first, int64_t count) {
    const int64_t size = K_ * call_.V, begin = call_.row_begin(b), chunks = call_.row_chunks(b);
    const auto features = call_.features && call_.features->is_softmax() ? &*call_.features : nullptr;
    for (int64_t h = 0; h < count; ++h) {
      if (features) peaks_[h] = features->before[b * call_.H + first + h];
      const float* from = call_.S + (b * call_.H + first + h) * size + column_;
      for (int64_t i = 0; i < K_; ++i) copy_padded(from + i * call_.V, V_, Vp_, state(h) + i * Vp_);
    }
    for (int64_t n = 0; n < chunks; ++n) {
      const RecurrenceChunk& chunk = call_.chunks[static_cast<size_t>(begin + n)];
      for (int64_t h = 0; h < count; ++h) {
        if (chunk.restart) std::fill_n(state(h), K_ * Vp_, 0.0f);
        if (call_.states && n % call_.keep == 0) {
          store_state(h, call_.states + (call_.saved_before(b, first + h) + n / call_.keep) * size);
        }
        const bool last_head = h + 1 == count;
        if (!last_head || n + 1 < chunks) {
          const RecurrenceChunk& next = last_head ? *(&chunk + 1) : chunk;
          ahead_.begin(
              next.count, head_.token(b, last_head ? first : first + h + 1, next, 0), call_.H,
              {{call_.q, call_.row_size()}, {call_.k, call_.row_size()}, {call_.v, call_.V}, {result_.o, call_.V}});
        }
        chunk_of_head(b, first + h, chunk, state(h), peaks_[h]);
      }
    }
    for (int64_t h = 0; h < count; ++h) {
      store_state(h, result_.S + (b * call_.H + first + h) * size);
      if (features && column_ == 0) features->after[b * call_.H + first + h] = peaks_[h];
    }
  }

 private:
  float* state(int64_t h) const { return states_ + h * K_ * Vp_; }
  void store_state(int64_t h, float* to) const {
    for (int64_t i = 0; i < K_; ++i) copy(state(h) + i * Vp_, V_, to + i * call_.V + column_);
  }

  void chunk_of_head(int64_t b, int64_t h, const RecurrenceChunk& chunk, float* S, float& peak) {
    const int64_t c = chunk.count;
    const auto at = [&](int64_t i) { return head_.token(b, h, chunk, i) * call_.V + column_; };
    head_.load_chunk(b, h, chunk, peak);
    if (call_.features && call_.features->peaks && column_ == 0) {
      for (int64_t i = 0; i < c; ++i) call_.features->peaks[head_.token(b, h, chunk, i)] = head_.features->peaks()[i];
    }
    head_.scores(c);
    head_.decay_asking(c, Kp_, head_.X);
    float* right = head_.corrects ? Y_ : U_;
    for (int64_t i = 0; i < c; ++i) load_row(call_.v, at(i), V_, Vp_, right + i * Vp_);
    if (head_.corrects) {
      product_ahead<Store::add>(ahead_, c, V_, K_, {head_.X, Kp_}, S, Vp_, Y_, Vp_, -1);
      solve(b, h, chunk);
    }
    const bool direct = !result_.o.bfloat16 && V_ == Vp_;
    float* o = direct ? static_cast<float*>(result_.o.data) + at(0) : o_;
    const int64_t o_row = direct ? call_.H * call_.V : Vp_;
    product_ahead<Store::set>(ahead_, c, V_, K_, {head_.X + c * Kp_, Kp_}, S, Vp_, o, o_row);
    product<Store::add>(c, V_, c, {head_.F + c * kC, kC}, U_, Vp_, o, o_row, 1, /*lower=*/true);
    for (int64_t i = 0; !direct && i < c; ++i) store_row(o_ + i * Vp_, V_, result_.o, at(i));
    learn(c, S);
  }

  /// S of the next chunk.
  void learn(int64_t c, float* S) {
    if (head_.decay == Decay::token) {
      for (int64_t i = 0; i < c; ++i) scale(head_.after(c, i), Vp_, U_ + i * Vp_);
      scale(head_.through(c), K_ * Vp_, S);
    } else if (head_.decay == Decay::channel) {
      for (int64_t n = 0; n < K_; ++n) scale(head_.channels_through(c)[n], Vp_, S + n * Vp_);
    }
    product_ahead<Store::add>(ahead_, K_, V_, c, {head_.k_columns, kC}, U_, Vp_, S, Vp_);
  }

  /// U from Y = v - d k S.
  void solve(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count;
    for (int64_t i = 0; i < c; ++i) beta_[i] = call_.beta[head_.token(b, h, chunk, i)];
    solve_triangular<kC, 1>(c, Vp_, head_.F, beta_, Y_, U_, Vp_);
    if (!call_.errors) return;
    for (int64_t i = 0; i < c; ++i) {
      copy(Y_ + i * Vp_, V_, call_.errors + head_.token(b, h, chunk, i) * call_.V + column_);
    }
  }

  const RecurrenceCall& call_;
  const RecurrenceResult& result_;
  Head head_;
  Ahead ahead_;
  int64_t K_, V_, column_, Kp_, Vp_;
  float* states_;       // [heads][K, Vp]
  float *Y_, *U_, *o_;  // [C, Vp]
  float* beta_;         // [C]
  float* peaks_;        // [heads], of features
};

/// Where there are fewer heads than threads, these share the columns of each head's V: the scores of a chunk are
/// computed once for each share, every number as by one thread.
void forward(const RecurrenceCall& call, const RecurrenceResult& result) {
  const int64_t heads = call.B * call.H, blocks = padded(call.V) / kAlign;
  const int64_t shares = std::min(blocks, threads() / heads);
  if (shares <= 1) return each_group<Forward>(call, result);
  parallel(heads * shares, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / shares, share = i % shares;
      const int64_t column = blocks * share / shares * kAlign;
      const int64_t end_column = std::min(call.V, blocks * (share + 1) / shares * kAlign);
      Scratch scratch;
      Forward(scratch, call, result, 1, column, end_column - column).run(head / call.H, head % call.H, 1);
    }
  });
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);

void cpu::linear_recurrence_forward(const RecurrenceCall& call, const RecurrenceResult& result) {
  HWY_DYNAMIC_DISPATCH(forward)(call, result);
}

}  // namespace lineal::kernels
#endif
