// The backward pass of the linear recurrences.                                       formulas: linear_recurrence-inl.h
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_recurrence_backward.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/linear_recurrence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace recurrence;

/// y [0, n) += a x, elementwise, n a multiple of kLanes.
inline void add_product(const float* a, const float* x, int64_t n, float* y) {
  for (int64_t j = 0; j < n; j += kLanes) store(hn::MulAdd(load(a + j), load(x + j), load(y + j)), y + j);
}

class Backward {
 public:
  /// For `heads` at once.
  Backward(Scratch& scratch, const RecurrenceCall& call, const RecurrenceGradients& gradients, int64_t heads)
      : call_(call),
        d_(gradients),
        head_(scratch, call),
        K_(head_.K),
        V_(call.V),
        Kp_(head_.Kp),
        Vp_(padded(V_)),
        state_size_(Vp_ * Kp_) {
    states_ = scratch.take(call.keep * state_size_);
    gradients_ = scratch.take(heads * state_size_);
    work_ = scratch.take(state_size_);
    Y_ = scratch.take(kC * Vp_);
    U_ = scratch.take(kC * Vp_);
    dU_ = scratch.take(kC * Vp_);
    E_ = scratch.take(2 * kC * Vp_);
    columns_ = scratch.take(Vp_ * kC);
    dF_ = scratch.take(2 * kC * kC);
    dX_ = scratch.take(2 * kC * Kp_);
    stored_ = scratch.take(kC * Kp_);
    raw_ = scratch.take(2 * kC * Kp_);
    moving_ = scratch.take(2 * kC * Kp_);
    width_ = call.decay == Decay::channel ? Kp_ : kAlign;
    da_ = scratch.take(kC * width_);
    db_ = scratch.take(kC * width_);
    through_ = scratch.take(width_);
    diagonal_ = scratch.take(kC);
    beta_ = scratch.take(kC);
    if (!call.features) return;
    du_ = scratch.take(2 * kC * padded(call.features->M));
    dx_ = scratch.take(2 * kC * padded(call.features->K));
    dg_ = scratch.take(kC);
    peak_gradients_ = scratch.take(heads);
  }

  /// From the last chunks to the first, some at a time: head after head, so that memory is read in its order.
  void run(int64_t b, int64_t first_head, int64_t heads) {
    for (int64_t i = 0; i < heads; ++i) begin(b, first_head + i, i);
    for (int64_t n = call_.row_groups(b); n-- > 0;) {
      for (int64_t i = 0; i < heads; ++i) {
        select(i);
        group(b, first_head + i, n);
      }
    }
    for (int64_t i = 0; i < heads; ++i) end(b, first_head + i, i);
  }

  /// R^T of a head after each of `parts` parts of its chunks, [parts, Vp, Kp]: the numbers that `run` finds there.
  void find_gradients(int64_t b, int64_t h, int64_t parts, float* after) {
    begin(b, h, 0);
    select(0);
    int64_t n = call_.row_chunks(b) - 1;
    for (int64_t part = parts - 1; part >= 0; --part) {
      const int64_t last = std::min(call_.row_chunks(b), first_group(b, part + 1, parts) * call_.keep);
      for (; n >= last; --n) {
        const int64_t size = call_.row_size();
        prefetch(b, h, n - 1, {{call_.q, size}, {call_.k, size}, {d_.o, V_}});
        step_back_alone(b, h, chunk(b, n));
      }
      copy(R_, state_size_, after + part * state_size_);
    }
  }
  /// One of these parts, from what was found.
  void run_part(int64_t b, int64_t h, int64_t part, int64_t parts, const float* after) {
    select(0);
    copy(after + part * state_size_, state_size_, R_);
    const int64_t first = first_group(b, part, parts);
    for (int64_t i = first_group(b, part + 1, parts); i-- > first;) group(b, h, i);
    if (part == 0) end(b, h, 0);
  }

 private:
  const RecurrenceChunk& chunk(int64_t b, int64_t n) const {
    return call_.chunks[static_cast<size_t>(call_.row_begin(b) + n)];
  }

  int64_t first_group(int64_t b, int64_t part, int64_t parts) const { return call_.row_groups(b) * part / parts; }

  /// The i-th of the heads that are worked on together.
  void select(int64_t i) {
    R_ = gradients_ + i * state_size_;
    if (d_.peak) dp_ = peak_gradients_ + i;
  }
  void begin(int64_t b, int64_t h, int64_t i) {
    load_state(d_.S_after + (b * call_.H + h) * K_ * V_, gradients_ + i * state_size_);
    if (d_.peak) peak_gradients_[i] = d_.peak_after[b * call_.H + h];
  }
  void end(int64_t b, int64_t h, int64_t i) {
    float* to = d_.S + (b * call_.H + h) * K_ * V_;
    transpose(V_, K_, gradients_ + i * state_size_, Kp_, work_, Vp_);
    for (int64_t n = 0; n < K_; ++n) copy(work_ + n * Vp_, V_, to + n * V_);
    if (d_.peak) d_.peak[b * call_.H + h] = peak_gradients_[i];
  }

  /// The chunks of group i, from the state saved at its first.
  void group(int64_t b, int64_t h, int64_t i) {
    const int64_t first = i * call_.keep, last = std::min(call_.row_chunks(b), first + call_.keep);
    const auto state = [&](int64_t n) { return states_ + (n - first) * state_size_; };
    load_state(call_.states + (call_.saved_before(b, h) + i) * K_ * V_, state(first));
    for (int64_t n = first; n + 1 < last; ++n) advance(b, h, n, state(n), state(n + 1));
    for (int64_t n = last - 1; n >= first; --n) {
      const Source u = head_.corrects ? Source{call_.errors} : call_.v;
      const int64_t size = call_.row_size();
      prefetch(b, h, n - 1,
               {{call_.q, size}, {call_.k, size}, {u, V_}, {d_.o, V_}, {d_.q, size}, {d_.k, size}, {d_.v, V_}});
      one_chunk(b, h, chunk(b, n), state(n));
    }
  }

  /// Has memory bring these rows of chunk n, if there is one.
  void prefetch(int64_t b, int64_t h, int64_t n, std::initializer_list<Ahead::Rows> list) {
    if (n >= 0) ahead_.begin(chunk(b, n).count, head_.token(b, h, chunk(b, n), 0), call_.H, list);
  }

  /// Of features: the largest exponent before the chunk.
  float peak_before(int64_t b, int64_t h, const RecurrenceChunk& chunk) const {
    if (!d_.peak) return 0;
    return chunk.first == 0 ? call_.features->before[b * call_.H + h]
                            : call_.features->peaks[head_.token(b, h, chunk, -1)];
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
    float peak = peak_before(b, h, chunk(b, n));
    head_.load_chunk(b, h, chunk(b, n), peak);
    recall(b, h, chunk(b, n));
    decay_stored(c);
    copy(S, state_size_, next);
    pass(c, next);
    if (head_.decay == Decay::channel) multiply(head_.f, c * Kp_, head_.X);
    product<Store::add>(V_, K_, c, {U_, 1, Vp_}, head_.X, Kp_, next, Kp_);
  }

  /// d_C S or d_C R of a transposed state.
  void pass(int64_t c, float* state) const {
    if (head_.decay == Decay::token) scale(head_.through(c), state_size_, state);
    if (head_.decay != Decay::channel) return;
    for (int64_t n = 0; n < V_; ++n) multiply(head_.channels_through(c), Kp_, state + n * Kp_);
  }

  /// U and Y, from what forward saved.
  void recall(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t token = head_.token(b, h, chunk, i);
      float *U = U_ + i * Vp_, *Y = Y_ + i * Vp_;
      if (!head_.corrects) {
        load_row(call_.v, token * V_, V_, Vp_, U);
        continue;
      }
      copy_padded(call_.errors + token * V_, V_, Vp_, U);
      copy(U, Vp_, Y);
      scale(call_.beta[token], Vp_, U);
    }
  }

  /// U becomes f U, with a decay per token.
  void decay_stored(int64_t c) {
    if (head_.decay != Decay::token) return;
    for (int64_t i = 0; i < c; ++i) scale(head_.after(c, i), Vp_, U_ + i * Vp_);
  }

  /// X, do and with `scores` F.
  void read(int64_t b, int64_t h, const RecurrenceChunk& chunk, bool scores = true) {
    const int64_t c = chunk.count;
    float peak = peak_before(b, h, chunk);
    head_.load_chunk(b, h, chunk, peak);
    if (head_.decay == Decay::channel) copy(head_.X, 2 * c * Kp_, raw_);
    if (scores) head_.scores(c);
    for (int64_t i = 0; i < c; ++i) {
      load_row(d_.o, head_.token(b, h, chunk, i) * V_, V_, Vp_, E_ + (c + i) * Vp_);
    }
  }

  /// R of the chunk before, from E with d.
  void step_back(const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count, first = head_.first(c);
    if (chunk.restart) {
      std::fill_n(R_, state_size_, 0.0f);
      return;
    }
    pass(c, R_);
    product_ahead<Store::add>(ahead_, V_, K_, head_.rows(c), {E_ + first * Vp_, 1, Vp_}, head_.X + first * Kp_, Kp_, R_,
                              Kp_);
  }

  /// The same without anything else of the chunk; U and what is made of it mean nothing then.
  void step_back_alone(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    read(b, h, chunk, head_.corrects || head_.decay == Decay::channel);
    if (head_.corrects) {
      values(chunk.count);
      solve(b, h, chunk);
    }
    head_.decay_asking(chunk.count, Vp_, E_);
    step_back(chunk);
  }

  void one_chunk(int64_t b, int64_t h, const RecurrenceChunk& chunk, const float* S) {
    const int64_t c = chunk.count, first = head_.first(c);
    read(b, h, chunk);
    recall(b, h, chunk);
    values(c);
    if (head_.corrects) solve(b, h, chunk);
    give_values(b, h, chunk);
    transpose(c, V_, U_, Vp_, columns_, kC);
    head_.scores(c, E_, V_, Vp_, columns_, dF_);
    if (head_.decay != Decay::none) through(c, S);
    head_.decay_asking(c, Vp_, E_);
    product_ahead<Store::set>(ahead_, head_.rows(c), K_, V_, {E_ + first * Vp_, Vp_}, S, Kp_, dX_ + first * Kp_, Kp_);
    head_.decay == Decay::channel ? channel_keys(c) : keys(c);
    give(b, h, chunk);
    step_back(chunk);
  }

  /// dU, and db with a decay per token.
  void values(int64_t c) {
    product_ahead<Store::set>(ahead_, V_, c, K_, {R_, Kp_}, head_.k_columns, kC, columns_, kC);  // (k R)^T
    transpose(V_, c, columns_, kC, dU_, Vp_);
    if (head_.decay == Decay::token) {
      for (int64_t i = 0; i < c; ++i) {
        scale(head_.after(c, i), Vp_, dU_ + i * Vp_);
        db_[i * width_] = dot(dU_ + i * Vp_, U_ + i * Vp_, Vp_);
      }
    }
    product<Store::add>(c, V_, c, {head_.F + c * kC, 1, kC}, E_ + c * Vp_, Vp_, dU_, Vp_);
  }

  /// d_C <S, R>, and dF loses its diagonal.
  void through(int64_t c, const float* S) {
    if (head_.decay == Decay::channel) {
      std::fill_n(through_, Kp_, 0.0f);
      for (int64_t n = 0; n < V_; ++n) add_product(S + n * Kp_, R_ + n * Kp_, Kp_, through_);
      multiply(head_.channels_through(c), Kp_, through_);
    } else {
      through_[0] = head_.through(c) * dot(S, R_, state_size_);
    }
    for (int64_t i = 0; i < c; ++i) diagonal_[i] = std::exchange(dF_[(c + i) * kC + i], 0.0f);
  }

  /// N. dU + A^T N is to -N as Y is to U in the forward pass, from the last row on.
  void solve(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count, end = c - 1;
    for (int64_t i = 0; i < c; ++i) beta_[end - i] = call_.beta[head_.token(b, h, chunk, i)];
    solve_triangular<-1, -kC>(c, Vp_, head_.F + end * (kC + 1), beta_, dU_ + end * Vp_, E_ + end * Vp_, -Vp_);
    scale(-1, c * Vp_, E_);
  }

  /// The gradients of v and beta.
  void give_values(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t token = head_.token(b, h, chunk, i);
      float* dv = dU_ + i * Vp_;
      if (head_.corrects) {
        d_.beta[token] = dot(dv, Y_ + i * Vp_, Vp_);
        scale(call_.beta[token], Vp_, dv);
      }
      store_row(dv, V_, d_.v, token * V_);
    }
  }

  /// dX, and dF^T X + f U R^T as what is stored; of da the part of what is stored.
  void keys(int64_t c) {
    const int64_t first = head_.first(c), rows = head_.rows(c);
    for (int64_t half = first; half < 2 * c; half += c) {
      product<Store::add>(c, K_, c, {dF_ + half * kC, kC}, head_.X, Kp_, dX_ + half * Kp_, Kp_, 1, /*lower=*/true);
    }
    product<Store::set>(c, K_, rows, {dF_ + first * kC, 1, kC}, head_.X + first * Kp_, Kp_, stored_, Kp_);
    if (head_.decay == Decay::token) {
      for (int64_t i = 0; i < c; ++i) da_[i * width_] = -dot(head_.X + i * Kp_, stored_ + i * Kp_, Kp_);
    }
    decay_stored(c);
    product_ahead<Store::add>(ahead_, c, K_, V_, {U_, Vp_}, R_, Kp_, stored_, Kp_);
  }

  /// The same with a decay per channel, and db. From token to token the k before it decay, and on the way back the X
  /// after it.
  void channel_keys(int64_t c) {
    product_ahead<Store::set>(ahead_, c, K_, V_, {U_, Vp_}, R_, Kp_, stored_, Kp_);
    multiply(head_.f, c * Kp_, stored_);
    for (int64_t half = head_.first(c); half < 2 * c; half += c) multiply(head_.d, c * Kp_, dX_ + half * Kp_);
    std::fill_n(da_, c * Kp_, 0.0f);
    std::fill_n(db_, c * Kp_, 0.0f);
    add_product(raw_, stored_, c * Kp_, db_);
    for (int64_t n = 0; n < Kp_; n += kLanes) {
      if (head_.corrects) {
        channels_ask<true>(c, n);
        channels_stored<true>(c, n);
      } else {
        channels_ask<false>(c, n);
        channels_stored<false>(c, n);
      }
    }
  }

  /// dX += dF k, of the channels [n, n + kLanes).
  template <bool corrects>
  void channels_ask(int64_t c, int64_t n) {
    for (int64_t t = 0; t < c; ++t) {
      const Vec decay = load(head_.factor + t * Kp_ + n);
      const float *dA = dF_ + t * kC, *dP = dA + c * kC;
      float *of_k = dX_ + t * Kp_ + n, *of_q = of_k + c * Kp_;
      Vec k_sum = load(of_k), q_sum = load(of_q);
      for (int64_t j = 0; j < t; ++j) {
        float* k = moving_ + j * kLanes;
        const Vec now = hn::Mul(load(k), decay);
        store(now, k);
        if (corrects) k_sum = hn::MulAdd(all(dA[j]), now, k_sum);
        q_sum = hn::MulAdd(all(dP[j]), now, q_sum);
      }
      store(load(raw_ + t * Kp_ + n), moving_ + t * kLanes);
      if (corrects) store(k_sum, of_k);
      store(q_sum, of_q);
    }
  }

  /// dF^T X of the same, and its part of da.
  template <bool corrects>
  void channels_stored(int64_t c, int64_t n) {
    for (int64_t j = c - 1; j >= 0; --j) {
      const Vec decay = load(head_.factor + (j + 1) * Kp_ + n);
      Vec sum = hn::Zero(kWide);
      for (int64_t t = j + 1; t < c; ++t) {
        float *k = moving_ + t * kLanes, *q = k + c * kLanes;
        const Vec q_now = hn::Mul(load(q), decay);
        store(q_now, q);
        sum = hn::MulAdd(all(dF_[(c + t) * kC + j]), q_now, sum);
        if (corrects) {
          const Vec k_now = hn::Mul(load(k), decay);
          store(k_now, k);
          sum = hn::MulAdd(all(dF_[t * kC + j]), k_now, sum);
        }
      }
      const float* k = raw_ + j * Kp_ + n;
      store(load(k), moving_ + j * kLanes);
      store(load(k + c * Kp_), moving_ + (c + j) * kLanes);
      float *stored = stored_ + j * Kp_ + n, *da = da_ + j * Kp_ + n;
      store(hn::NegMulAdd(load(k), sum, load(da)), da);
      store(hn::Add(load(stored), sum), stored);
    }
  }

  /// The gradients of q, k and g.
  void give(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count;
    const float* X = head_.decay == Decay::channel ? raw_ : head_.X;
    for (int64_t i = 0; i < c; ++i) {
      const float *k = X + i * Kp_, *q = k + c * Kp_, *of_asking_k = dX_ + i * Kp_;
      float *dk = stored_ + i * Kp_, *dq = dX_ + (c + i) * Kp_, *da = da_ + i * width_;
      if (head_.decay == Decay::token) {
        *da += dot(q, dq, K_) + (head_.corrects ? dot(k, of_asking_k, K_) : 0);
      } else if (head_.decay == Decay::channel) {
        add_product(q, dq, Kp_, da);
        if (head_.corrects) add_product(k, of_asking_k, Kp_, da);
      }
      if (head_.corrects) add_scaled(1, of_asking_k, Kp_, dk);
      if (head_.decay != Decay::none) {
        add_scaled(diagonal_[i], k, Kp_, dq);
        add_scaled(diagonal_[i], q, Kp_, dk);
      }
    }
    if (head_.decay != Decay::none) give_decays(b, h, chunk);
    const float *dk = stored_, *dq = dX_ + c * Kp_;
    int64_t row = Kp_;
    if (head_.features) {
      float none = 0;
      head_.features->gradients(c, head_.begins(b, chunk), peak_before(b, h, chunk), X, dk, dq, dg_,
                                d_.peak ? *dp_ : none, du_, dx_);
      row = padded(call_.row_size());
      dk = dx_, dq = dx_ + c * row;
    }
    const int64_t n = call_.row_size();
    for (int64_t i = 0; i < c; ++i) {
      const int64_t at = head_.token(b, h, chunk, i) * n;
      store_row(dk + i * row, n, d_.k, at);
      store_row(dq + i * row, n, d_.q, at);
    }
  }

  /// dg from the sums before, after and through.
  void give_decays(int64_t b, int64_t h, const RecurrenceChunk& chunk) {
    const int64_t c = chunk.count, n = head_.decay == Decay::channel ? K_ : 1;
    for (int64_t i = c - 2; i >= 0; --i) add_scaled(1, da_ + (i + 1) * width_, n, da_ + i * width_);
    for (int64_t i = 0; i < c; ++i) {  // db before i is in through
      float* da = da_ + i * width_;
      add_scaled(1, through_, n, da);
      add_scaled(1, db_ + i * width_, n, through_);
      copy(da, n, head_.features ? dg_ + i : d_.g + head_.token(b, h, chunk, i) * n);
    }
  }

  const RecurrenceCall& call_;
  const RecurrenceGradients& d_;
  Head head_;
  Ahead ahead_;
  int64_t K_, V_, Kp_, Vp_, state_size_;
  float* states_;            // [keep][Vp, Kp]: S^T at the start of each chunk of a group
  float *gradients_, *R_;    // [heads][Vp, Kp]: R^T of each head, and the one at hand
  float* work_;              // [Kp, Vp]
  float *Y_, *U_, *dU_;      // [C, Vp]
  float* E_;                 // [2C, Vp]
  float* columns_;           // [Vp, C]
  float* dF_;                // [2C, C]
  float *dX_, *stored_;      // [2C, Kp]; [C, Kp]: gradients of what asks and of what is stored
  float *raw_, *moving_;     // [2C, Kp]: X without d; [2C, lanes]: some channels of it on their way
  int64_t width_;            // of rows of sums: Kp per channel, else their first element counts
  float *da_, *db_;          // [C, width]: what dg sums over the tokens from its own on, and before it
  float* through_;           // [width]
  float *diagonal_, *beta_;  // [C]: of dP; of the tokens from the last
  // Of features: gradients of u [2C, Mp], of x [2C, Xp] and of g [C]; of each head's largest exponent, and the one at
  // hand
  float *du_ = nullptr, *dx_ = nullptr, *dg_ = nullptr, *peak_gradients_ = nullptr, *dp_ = nullptr;
};

/// Where there are two threads or more to a head, they share its groups of chunks, once it is known what R is after
/// each share. With a largest exponent, whose gradient passes through all of them, they do not.
void backward(const RecurrenceCall& call, const RecurrenceGradients& gradients) {
  const int64_t heads = call.B * call.H;
  int64_t groups = 0;  // of the longest row
  for (int64_t b = 0; b < call.B; ++b) groups = std::max(groups, call.row_groups(b));
  const int64_t parts = std::min(groups, threads() / heads);
  if (parts <= 1 || gradients.peak) return each_group<Backward>(call, gradients);
  const int64_t size = parts * padded(call.V) * padded(call.K);
  std::vector<float> after(static_cast<size_t>(heads * size));
  const auto each = [&](int64_t count, const auto& work) {
    parallel(count, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      Backward kernel(scratch, call, gradients, 1);
      for (int64_t i = begin; i < end; ++i) work(kernel, i);
    });
  };
  each(heads, [&](Backward& kernel, int64_t i) {
    kernel.find_gradients(i / call.H, i % call.H, parts, after.data() + i * size);
  });
  each(heads * parts, [&](Backward& kernel, int64_t i) {
    const int64_t head = i / parts;
    kernel.run_part(head / call.H, head % call.H, i % parts, parts, after.data() + head * size);
  });
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(backward);

void cpu::linear_recurrence_backward(const RecurrenceCall& call, const RecurrenceGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace lineal::kernels
#endif
