// One token of the linear recurrences, forward only: what a decoding session does.  formulas: linear_recurrence-inl.h
//
// The state is read once from memory: o = S'^T q needs no S' where z = S^T (d q) is known,
//   z_k = S^T (d k),  z_q = S^T (d q),  u = beta (v - z_k),  o = z_q + (k . q) u,  S' = d S + k u^T
// and without beta u = v is known before S is read.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_recurrence_step.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/linear_recurrence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace recurrence;

/// The rows of one head, in float32: padded.
struct Token {
  int64_t K, V;
  float *q, *k, *dq, *dk, *d;  // [Kp]
  float *v, *o;                // [Vp]
  float beta, kq;
};

/// N vectors of the columns of S and S_after, beginning where they point.
template <bool corrects, bool decays, int N, class D>
HWY_INLINE void columns(D wide, const Token& token, const float* S, float* S_after, int64_t column) {
  constexpr int64_t lanes = hn::MaxLanes(D());
  const int64_t K = token.K, V = token.V;
  using V_ = hn::Vec<D>;
  V_ u[N], o[N];
  LINEAL_UNROLL
  for (int n = 0; n < N; ++n) {
    u[n] = hn::LoadU(wide, token.v + column + n * lanes);
    o[n] = hn::Zero(wide);
  }
  if (corrects) {
    V_ z[N];
    LINEAL_UNROLL
    for (int n = 0; n < N; ++n) z[n] = hn::Zero(wide);
    const float* row = S + column;
    for (int64_t i = 0; i < K; ++i, row += V) {
      const V_ k = hn::Set(wide, token.dk[i]), q = hn::Set(wide, token.dq[i]);
      LINEAL_UNROLL
      for (int n = 0; n < N; ++n) {
        const V_ s = hn::LoadU(wide, row + n * lanes);
        z[n] = hn::MulAdd(k, s, z[n]);
        o[n] = hn::MulAdd(q, s, o[n]);
      }
    }
    const V_ beta = hn::Set(wide, token.beta), kq = hn::Set(wide, token.kq);
    LINEAL_UNROLL
    for (int n = 0; n < N; ++n) {
      u[n] = hn::Mul(beta, hn::Sub(u[n], z[n]));
      o[n] = hn::MulAdd(kq, u[n], o[n]);
    }
  }
  const float* row = S + column;
  float* row_after = S_after + column;
  for (int64_t i = 0; i < K; ++i, row += V, row_after += V) {
    const V_ k = hn::Set(wide, token.k[i]), q = hn::Set(wide, token.q[i]), d = hn::Set(wide, token.d[i]);
    LINEAL_UNROLL
    for (int n = 0; n < N; ++n) {
      V_ s = hn::LoadU(wide, row + n * lanes);
      if (decays) s = hn::Mul(d, s);
      s = hn::MulAdd(k, u[n], s);
      if (!corrects) o[n] = hn::MulAdd(q, s, o[n]);
      hn::StoreU(s, wide, row_after + n * lanes);
    }
  }
  LINEAL_UNROLL
  for (int n = 0; n < N; ++n) hn::StoreU(o[n], wide, token.o + column + n * lanes);
}

template <bool corrects, bool decays>
void all_columns(const Token& token, const float* S, float* S_after) {
  const hn::CappedTag<float, 1> one;
  int64_t column = 0;
  for (; column + 4 * kLanes <= token.V; column += 4 * kLanes) {
    columns<corrects, decays, 4>(kWide, token, S, S_after, column);
  }
  for (; column + kLanes <= token.V; column += kLanes) {
    columns<corrects, decays, 1>(kWide, token, S, S_after, column);
  }
  for (; column < token.V; ++column) columns<corrects, decays, 1>(one, token, S, S_after, column);
}

void step(const RecurrenceCall& call, const bool* starts, const StatePart& state, const Target& o) {
  const int64_t K = call.K, V = call.V, Kp = padded(K), Vp = padded(V);
  const auto some = [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Token token{.K = K, .V = V};
    for (float** row : {&token.q, &token.k, &token.dq, &token.dk, &token.d}) *row = scratch.take(Kp);
    for (float** row : {&token.v, &token.o}) *row = scratch.take(Vp);
    std::fill_n(token.d, Kp, 1.0f);
    for (int64_t i = begin; i < end; ++i) {
      const bool restart = starts && starts[i / call.H];
      load_row(call.q, i * K, K, Kp, token.q);
      load_row(call.k, i * K, K, Kp, token.k);
      load_row(call.v, i * V, V, Vp, token.v);
      if (call.decay == Decay::channel) {
        copy_padded(call.g + i * K, K, Kp, token.d);
        exponentials(Kp, token.d);
      } else if (call.decay == Decay::token) {
        std::fill_n(token.d, Kp, call.g[i]);
        exponentials(kLanes, token.d);
        std::fill_n(token.d, Kp, token.d[0]);
      }
      const float* S = state.before(i / call.H) + i % call.H * K * V;
      float* S_after = state.after(i / call.H) + i % call.H * K * V;
      if (restart) {  // reads the zeros it will overwrite
        std::fill_n(S_after, K * V, 0.0f);
        S = S_after;
      }
      const bool decays = call.decay != Decay::none;
      if (call.beta) {
        token.beta = call.beta[i];
        token.kq = dot(token.k, token.q, Kp);
        for (const auto& [from, to] : {std::pair(token.k, token.dk), std::pair(token.q, token.dq)}) {
          copy(from, Kp, to);
          if (decays) multiply(token.d, Kp, to);
        }
        decays ? all_columns<true, true>(token, S, S_after) : all_columns<true, false>(token, S, S_after);
      } else {
        decays ? all_columns<false, true>(token, S, S_after) : all_columns<false, false>(token, S, S_after);
      }
      store_row(token.o, V, o, i * V);
    }
  };
  constexpr int64_t kWorthThreads = 1 << 16;  // floats of state: fewer are done before a second thread has begun
  if (call.B * call.H * K * V < kWorthThreads) return some(0, call.B * call.H);
  parallel(call.B * call.H, some);
}

void features_of_step(const RecurrenceCall& call, const bool* starts, float* q, float* k, float* g) {
  const FeatureCall& f = *call.features;
  const int64_t K = call.K, Kp = padded(K), n = f.K, np = padded(n);
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Features features(scratch, call);
    float *X = scratch.take(2 * Kp), factor = 1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / call.H;
      float peak = f.before ? f.before[i] : 0;
      load_row(call.k, i * n, n, np, features.x());
      load_row(call.q, i * n, n, np, features.x() + np);
      const bool begins = (starts && starts[b]) || f.fresh[b];
      features.compute(1, begins, peak, X, &factor);
      copy(X, K, k + i * K);
      copy(X + Kp, K, q + i * K);
      if (!f.is_softmax()) continue;
      f.after[i] = peak;
      g[i] = begins ? 0 : f.before[i] - peak;
    }
  });
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(step);
HWY_EXPORT(features_of_step);

void cpu::linear_recurrence_step(const RecurrenceCall& call, const bool* starts, const StatePart& S, const Target& o) {
  HWY_DYNAMIC_DISPATCH(step)(call, starts, S, o);
}

void cpu::features_step(const RecurrenceCall& call, const bool* starts, float* q, float* k, float* g) {
  HWY_DYNAMIC_DISPATCH(features_of_step)(call, starts, q, k, g);
}

}  // namespace lineal::kernels
#endif
