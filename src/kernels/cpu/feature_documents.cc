// Attention through random features over whole documents, both directions.       formulas of phi: features-inl.h
//   p = max(p_0, peaks of the document's keys);   S = exp(p_0 - p) S_0 + sum_t phi(k_t; p) v_t^T;   o_t = S^T phi(q_t)
// p and S are found in one pass: the sums so far are rescaled when p grows, and the epsilon of phi is added at the end,
// for it is relative to the last p. Documents that begin in the call have no S_0 and p_0.
// Backward, from do and dS of what the call ends with:
//   dS = dS + sum_t phi(q_t) do_t^T;   dphi(q_t) = S do_t;   dphi(k_t) = dS v_t;   dv_t = dS^T phi(k_t)
//   dS_0 = exp(p_0 - p) dS;   w = <dS_0, S_0>;   dp = dp - w - sum of t over all keys
// which goes on to the key that reached p, or with w to p_0.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/feature_documents.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/linear_recurrence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace recurrence;

/// What both passes share of one head of one document.
class Document {
 public:
  Document(Scratch& scratch, const RecurrenceCall& the_call)
      : call(the_call),
        f(*call.features),
        features(scratch, call),
        K(call.K),
        V(call.V),
        Kp(padded(K)),
        Vp(padded(V)),
        Xp(padded(f.K)) {
    S = scratch.take(K * Vp);
    X = scratch.take(kC * Kp);
    rows = scratch.take(kC * Vp);
    columns = scratch.take(Kp * kC);
  }

  const RecurrenceChunk& chunk(int64_t b, int64_t n) const {
    return call.chunks[static_cast<size_t>(call.row_begin(b) + n)];
  }
  /// Of row b: whether chunk n begins its document, for the state or for itself.
  bool begins(int64_t b, int64_t n) const { return chunk(b, n).restart || (n == 0 && f.fresh[b]); }
  /// The chunk after the last of the document of chunk n.
  int64_t end(int64_t b, int64_t n) const {
    for (++n; n < call.row_chunks(b) && !chunk(b, n).restart;) ++n;
    return n;
  }

  int64_t token(int64_t b, int64_t h, const RecurrenceChunk& c, int64_t i) const {
    return (b * call.T + c.first + i) * call.H + h;
  }
  /// Rows of x [B, T, H, f.K] into the features, and u of them.
  void project(const Source& x, int64_t b, int64_t h, const RecurrenceChunk& c) const {
    for (int64_t i = 0; i < c.count; ++i) load_row(x, token(b, h, c, i) * f.K, f.K, Xp, features.x() + i * Xp);
    features.project(c.count);
  }
  /// X [c, Kp] = phi(q).
  void ask(int64_t b, int64_t h, const RecurrenceChunk& c) const {
    project(call.q, b, h, c);
    for (int64_t i = 0; i < c.count; ++i) features.fill(i, f.is_softmax() ? features.peak(i) : 0, X + i * Kp);
  }
  /// rows [c, Vp] = x [B, T, H, V].
  void load(const Source& x, int64_t b, int64_t h, const RecurrenceChunk& c) const {
    for (int64_t i = 0; i < c.count; ++i) load_row(x, token(b, h, c, i) * V, V, Vp, rows + i * Vp);
  }
  /// to [K, Vp] += X^T rows.
  void add_to(int64_t c, float* to) const { product<Store::add>(K, V, c, {X, 1, Kp}, rows, Vp, to, Vp); }

  const RecurrenceCall& call;
  const FeatureCall& f;
  Features features;
  const int64_t K, V, Kp, Vp, Xp;
  float* S;        // [K, Vp]
  float* X;        // [C, Kp]
  float* rows;     // [C, Vp]
  float* columns;  // [Kp, C]
};

class Forward {
 public:
  Forward(Scratch& scratch, const RecurrenceCall& call, const RecurrenceResult& result)
      : call_(call), result_(result), doc_(scratch, call) {
    sum_ = scratch.take(doc_.Vp);
    o_ = scratch.take(kC * doc_.Vp);
  }

  void run(int64_t b, int64_t h) {
    const int64_t head = b * call_.H + h, size = doc_.K * doc_.V;
    float peak = 0;
    for (int64_t n = 0, document = 0; n < call_.row_chunks(b); ++document) {
      const int64_t end = doc_.end(b, n);
      const bool begins = doc_.begins(b, n);
      for (int64_t i = 0; i < doc_.K; ++i) {
        float* row = doc_.S + i * doc_.Vp;
        if (begins) std::fill_n(row, doc_.Vp, 0.0f);
        if (!begins) copy_padded(call_.S + head * size + i * doc_.V, doc_.V, doc_.Vp, row);
      }
      peak = learn(b, h, n, end, begins, doc_.f.before ? doc_.f.before[head] : 0);
      if (call_.states) {
        const int64_t at = call_.document(b, document) * call_.H + h;
        give_state(call_.states + at * size);
        if (doc_.f.peaks) doc_.f.peaks[at] = peak;
      }
      for (; n < end; ++n) answer(b, h, doc_.chunk(b, n));
    }
    give_state(result_.S + head * size);
    if (doc_.f.is_softmax()) doc_.f.after[head] = peak;
  }

 private:
  void give_state(float* to) const {
    for (int64_t i = 0; i < doc_.K; ++i) copy(doc_.S + i * doc_.Vp, doc_.V, to + i * doc_.V);
  }

  /// S over chunks [n, end), and p.
  float learn(int64_t b, int64_t h, int64_t n, int64_t end, bool begins, float p) {
    const bool softmax = doc_.f.is_softmax();
    std::fill_n(sum_, doc_.Vp, 0.0f);
    for (bool first = begins; n < end; ++n, first = false) {
      const RecurrenceChunk& c = doc_.chunk(b, n);
      doc_.project(call_.k, b, h, c);
      doc_.load(call_.v, b, h, c);
      if (softmax) {
        float most = first ? doc_.features.peak(0) : p;
        for (int64_t i = 0; i < c.count; ++i) most = std::max(most, doc_.features.peak(i));
        if (!first && most > p) scale(std::exp(p - most), doc_.K * doc_.Vp, doc_.S);
        p = most;
        for (int64_t i = 0; i < c.count; ++i) add_scaled(1, doc_.rows + i * doc_.Vp, doc_.Vp, sum_);
      }
      for (int64_t i = 0; i < c.count; ++i) doc_.features.fill(i, p, doc_.X + i * doc_.Kp, /*with_epsilon=*/!softmax);
      doc_.add_to(c.count, doc_.S);
    }
    const float epsilon = doc_.f.map == FeatureCall::trig || !softmax ? 0 : doc_.f.scale * doc_.f.epsilon;
    for (int64_t i = 0; epsilon > 0 && i < doc_.K; ++i) add_scaled(epsilon, sum_, doc_.Vp, doc_.S + i * doc_.Vp);
    return p;
  }

  void answer(int64_t b, int64_t h, const RecurrenceChunk& c) const {
    doc_.ask(b, h, c);
    product<Store::set>(c.count, doc_.V, doc_.K, {doc_.X, doc_.Kp}, doc_.S, doc_.Vp, o_, doc_.Vp);
    for (int64_t i = 0; i < c.count; ++i) {
      store_row(o_ + i * doc_.Vp, doc_.V, result_.o, doc_.token(b, h, c, i) * doc_.V);
    }
  }

  const RecurrenceCall& call_;
  const RecurrenceResult& result_;
  Document doc_;
  float* sum_;  // [Vp], of v
  float* o_;    // [C, Vp]
};

class Backward {
 public:
  Backward(Scratch& scratch, const RecurrenceCall& call, const RecurrenceGradients& gradients)
      : call_(call), d_(gradients), doc_(scratch, call) {
    dS_ = scratch.take(doc_.K * doc_.Vp);
    transposed_ = scratch.take(doc_.Vp * doc_.Kp);
    padded_ = scratch.take(doc_.Kp * doc_.Vp);
    dphi_ = scratch.take(kC * doc_.Kp);
    dv_ = scratch.take(kC * doc_.Vp);
    du_ = scratch.take(kC * padded(doc_.f.M));
    dx_ = scratch.take(kC * doc_.Xp);
  }

  void run(int64_t b, int64_t h) {
    const int64_t K = doc_.K, V = doc_.V, Vp = doc_.Vp, head = b * call_.H + h, chunks = call_.row_chunks(b);
    if (d_.peak) d_.peak[head] = 0;
    std::fill_n(d_.S + head * K * V, K * V, 0.0f);
    for (int64_t n = 0, document = 0; n < chunks; ++document) {
      const int64_t end = doc_.end(b, n), at = call_.document(b, document) * call_.H + h;
      const bool begins = doc_.begins(b, n), last = end == chunks;
      for (int64_t i = 0; i < K; ++i) {
        float* row = dS_ + i * Vp;
        if (last) copy_padded(d_.S_after + (head * K + i) * V, V, Vp, row);
        if (!last) std::fill_n(row, Vp, 0.0f);
        copy_padded(call_.states + (at * K + i) * V, V, Vp, doc_.S + i * Vp);
      }
      transpose_state(doc_.S);
      for (int64_t i = n; i < end; ++i) queries(b, h, doc_.chunk(b, i));
      transpose_state(dS_);
      const float p = doc_.f.peaks ? doc_.f.peaks[at] : 0;
      float dp = d_.peak && last ? d_.peak_after[head] : 0;
      for (int64_t i = n; i < end; ++i) dp -= keys(b, h, doc_.chunk(b, i), p);
      if (!begins) dp -= give_initial(head, p);
      if (d_.peak && dp != 0) give_peak(b, h, n, end, begins, p, dp);
      n = end;
    }
  }

 private:
  void transpose_state(const float* S) {
    copy(S, doc_.K * doc_.Vp, padded_);
    transpose(doc_.K, doc_.V, padded_, doc_.Vp, transposed_, doc_.Kp);
  }

  void queries(int64_t b, int64_t h, const RecurrenceChunk& c) {
    doc_.load(d_.o, b, h, c);
    doc_.ask(b, h, c);
    doc_.add_to(c.count, dS_);
    product<Store::set>(c.count, doc_.K, doc_.V, {doc_.rows, doc_.Vp}, transposed_, doc_.Kp, dphi_, doc_.Kp);
    for (int64_t i = 0; i < c.count; ++i) {
      doc_.features.gradient_of_query(i, doc_.X + i * doc_.Kp, dphi_ + i * doc_.Kp, du_ + i * padded(doc_.f.M));
    }
    const float none[kC] = {};
    finish(b, h, c, none, d_.q);
  }

  /// Returns the sum of t.
  float keys(int64_t b, int64_t h, const RecurrenceChunk& c, float p) {
    doc_.project(call_.k, b, h, c);
    for (int64_t i = 0; i < c.count; ++i) doc_.features.fill(i, p, doc_.X + i * doc_.Kp);
    doc_.load(call_.v, b, h, c);
    product<Store::set>(c.count, doc_.K, doc_.V, {doc_.rows, doc_.Vp}, transposed_, doc_.Kp, dphi_, doc_.Kp);
    product<Store::set>(c.count, doc_.V, doc_.K, {doc_.X, doc_.Kp}, dS_, doc_.Vp, dv_, doc_.Vp);
    float dh[kC] = {}, sum = 0;
    for (int64_t i = 0; i < c.count; ++i) {
      store_row(dv_ + i * doc_.Vp, doc_.V, d_.v, doc_.token(b, h, c, i) * doc_.V);
      const float t = doc_.features.gradient(i, doc_.X + i * doc_.Kp, dphi_ + i * doc_.Kp, du_ + i * padded(doc_.f.M));
      dh[i] = doc_.f.map == FeatureCall::trig ? t : -t;
      sum += t;
    }
    finish(b, h, c, dh, d_.k);
    return sum;
  }

  void finish(int64_t b, int64_t h, const RecurrenceChunk& c, const float* dh, const Target& to) {
    doc_.features.finish(c.count, du_, dh, dx_);
    for (int64_t i = 0; i < c.count; ++i) {
      store_row(dx_ + i * doc_.Xp, doc_.f.K, to, doc_.token(b, h, c, i) * doc_.f.K);
    }
  }

  /// dS_0, and w, which p_0 gets and p loses.
  float give_initial(int64_t head, float p) {
    const int64_t K = doc_.K, V = doc_.V;
    const float factor = d_.peak ? std::exp(doc_.f.before[head] - p) : 1;
    float w = 0;
    for (int64_t i = 0; i < K; ++i) {
      float* to = d_.S + (head * K + i) * V;
      copy(dS_ + i * doc_.Vp, V, to);
      scale(factor, V, to);
      w += dot(to, call_.S + (head * K + i) * V, V);
    }
    if (!d_.peak) return 0;
    d_.peak[head] += w;
    return w;
  }

  /// The gradient of p, to the first key that reached it, or to p_0.
  void give_peak(int64_t b, int64_t h, int64_t n, int64_t end, bool begins, float p, float dp) {
    const int64_t head = b * call_.H + h;
    if (!begins && doc_.f.before[head] == p) {
      d_.peak[head] += dp;
      return;
    }
    for (; n < end; ++n) {
      const RecurrenceChunk& c = doc_.chunk(b, n);
      doc_.project(call_.k, b, h, c);
      for (int64_t i = 0; i < c.count; ++i) {
        if (doc_.features.peak(i) != p) continue;
        float dh[kC] = {};
        std::fill_n(du_, kC * padded(doc_.f.M), 0.0f);
        dh[i] = doc_.features.gradient_of_peak(i, dp, du_ + i * padded(doc_.f.M));
        doc_.features.finish(c.count, du_, dh, dx_);
        float* to = static_cast<float*>(d_.k.data) + doc_.token(b, h, c, i) * doc_.f.K;
        add_scaled(1, dx_ + i * doc_.Xp, doc_.f.K, to);
        return;
      }
    }
  }

  const RecurrenceCall& call_;
  const RecurrenceGradients& d_;
  Document doc_;
  float* dS_;                    // [K, Vp]
  float *transposed_, *padded_;  // [Vp, Kp]: of S, then of dS; [Kp, Vp]
  float* dphi_;                  // [C, Kp]
  float *dv_, *du_, *dx_;        // [C, Vp], [C, Mp], [C, Xp]
};

template <class Kernel, class Other>
void each_head(const RecurrenceCall& call, const Other& other) {
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Kernel kernel(scratch, call, other);
    for (int64_t i = begin; i < end; ++i) kernel.run(i / call.H, i % call.H);
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

void cpu::feature_documents_forward(const RecurrenceCall& call, const RecurrenceResult& result) {
  HWY_DYNAMIC_DISPATCH(forward)(call, result);
}

void cpu::feature_documents_backward(const RecurrenceCall& call, const RecurrenceGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace lineal::kernels
#endif
