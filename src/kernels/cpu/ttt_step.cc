// One token of the TTT inner loops, forward only, each head's weights read once from memory.   formulas: mixers/ttt.h
//
// A token at place p of its inner batch, f(x) = x W (a bias is one row more, of an input of 1):
//   X = k W,  Z = q W;   G = eta d l / d X
//   Z = Z - s_p ((q . k) G + q D);   D' = D + k^T G               in one pass over D, which is 0 where p is 0
//   W' = W - s_C D',  D' = 0                                      where the token ends its inner batch
// TTT-MLP does so with both layers, h = gelu(k W1) and a = gelu(q W1') being k and q of the second.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ttt_step.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/gelu-inl.h"
#include "kernels/cpu/ttt-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

/// Calls f(column, width, count) for pieces of `count` vectors of hn::MaxLanes(width) that cover [0, n).
template <class F>
HWY_INLINE void each_column(int64_t n, const F& f) {
  const hn::CappedTag<float, 1> one;
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes) f(j, kWide, std::integral_constant<int, 4>());
  for (; j + kLanes <= n; j += kLanes) f(j, kWide, std::integral_constant<int, 1>());
  for (; j < n; ++j) f(j, one, std::integral_constant<int, 1>());
}

/// y [n] = x W + b for each of some x [m]; W [m, n], b [n] or null.
template <int inputs>
void apply(int64_t m, int64_t n, const float* W, const float* b, const float* const (&x)[inputs],
           float* const (&y)[inputs]) {
  each_column(n, [&](int64_t column, auto wide, auto count) {
    constexpr int64_t lanes = hn::MaxLanes(wide);
    constexpr int N = decltype(count)::value;
    hn::Vec<decltype(wide)> sum[inputs][N];
    LINEAL_UNROLL
    for (int v = 0; v < N; ++v) {
      const auto first = b ? hn::LoadU(wide, b + column + v * lanes) : hn::Zero(wide);
      LINEAL_UNROLL
      for (int c = 0; c < inputs; ++c) sum[c][v] = first;
    }
    const float* row = W + column;
    for (int64_t i = 0; i < m; ++i, row += n) {
      LINEAL_UNROLL
      for (int v = 0; v < N; ++v) {
        const auto w = hn::LoadU(wide, row + v * lanes);
        LINEAL_UNROLL
        for (int c = 0; c < inputs; ++c) sum[c][v] = hn::MulAdd(hn::Set(wide, x[c][i]), w, sum[c][v]);
      }
    }
    LINEAL_UNROLL
    for (int c = 0; c < inputs; ++c) {
      LINEAL_UNROLL
      for (int v = 0; v < N; ++v) hn::StoreU(sum[c][v], wide, y[c] + column + v * lanes);
    }
  });
}

/// x [m] = W g; W [m, n], m a multiple of 4.
void apply_transposed(int64_t m, int64_t n, const float* W, const float* g, float* x) {
  HWY_ALIGN float sums[4 * kLanes];
  for (int64_t i = 0; i < m; i += 4) {
    for (int64_t r = 0; r < 4; ++r) {
      const float* row = W + (i + r) * n;
      Vec sum = hn::Zero(kWide);
      for (int64_t j = 0; j < n; j += kLanes) sum = hn::MulAdd(load_lanes(row + j, n - j), load(g + j), sum);
      store(sum, sums + r * kLanes);
    }
    lane_sums(sums, x + i);
  }
}

/// A layer's weights or sums of one head, before and after; `m` rows of `n`, b null without bias.
struct Weights {
  const float *W, *b;
  float *W_after, *b_after;

  Weights(const TTTStep::Part& part, int64_t b_, int64_t h, int64_t m, int64_t n)
      : W(part.W.before(b_) + h * m * n), b(nullptr), W_after(part.W.after(b_) + h * m * n), b_after(nullptr) {
    if (part.b) b = part.b.before(b_) + h * n, b_after = part.b.after(b_) + h * n;
  }
  /// Begins at W [H, m, n] and b [H, n] instead of what was before.
  void restart(const Layer<const float>& from, int64_t h, int64_t m, int64_t n) {
    copy(from.W + h * m * n, m * n, W_after);
    W = W_after;
    if (!b) return;
    copy(from.b + h * n, n, b_after);
    b = b_after;
  }
  /// Has what was before also after, for a step that leaves it.
  void keep(int64_t m, int64_t n) const {
    if (W != W_after) copy(W, m * n, W_after);
    if (b && b != b_after) copy(b, n, b_after);
  }
};

/// What a token does to a layer: the inputs k and q [m], their product with the bias's, and the gradient G [n].
struct Learned {
  const float *k, *q;
  float kq;
  const float* G;
  float s, last;           // s_p, s_C
  bool pending, complete;  // D is not zero; the inner batch ends
};

/// Some rows of D and W, and y -= s q D.
template <bool pending, bool complete>
void learn_rows(int64_t m, int64_t n, const Learned& by, const float* k, const float* q, const float* D, float* D_after,
                const float* W, float* W_after, float* y) {
  each_column(n, [&](int64_t column, auto wide, auto count) {
    constexpr int64_t lanes = hn::MaxLanes(wide);
    constexpr int N = decltype(count)::value;
    using V = hn::Vec<decltype(wide)>;
    V G[N], answer[N];
    LINEAL_UNROLL
    for (int v = 0; v < N; ++v) {
      G[v] = hn::LoadU(wide, by.G + column + v * lanes);
      answer[v] = hn::Zero(wide);
    }
    const V last = hn::Set(wide, by.last);
    int64_t at = column;
    for (int64_t i = 0; i < m; ++i, at += n) {
      const V k_i = hn::Set(wide, k[i]), q_i = hn::Set(wide, q[i]);
      LINEAL_UNROLL
      for (int v = 0; v < N; ++v) {
        const int64_t here = at + v * lanes;
        V d = hn::Mul(k_i, G[v]);
        if (pending) {
          const V old = hn::LoadU(wide, D + here);
          answer[v] = hn::MulAdd(q_i, old, answer[v]);
          d = hn::MulAdd(k_i, G[v], old);
        }
        if (complete) hn::StoreU(hn::NegMulAdd(last, d, hn::LoadU(wide, W + here)), wide, W_after + here);
        hn::StoreU(complete ? hn::Zero(wide) : d, wide, D_after + here);
      }
    }
    if (!pending) return;
    LINEAL_UNROLL
    for (int v = 0; v < N; ++v) {
      float* to = y + column + v * lanes;
      hn::StoreU(hn::NegMulAdd(hn::Set(wide, by.s), answer[v], hn::LoadU(wide, to)), wide, to);
    }
  });
}

/// D and W take the token's step; y [n], f(q; W), becomes f(q; W - s_p D').
void learn(int64_t m, int64_t n, const Learned& by, const Weights& W, const Weights& D, float* y) {
  const float one = 1;
  const auto rows = [&](auto run) {
    run(m, n, by, by.k, by.q, D.W, D.W_after, W.W, W.W_after, y);
    if (W.b) run(1, n, by, &one, &one, D.b, D.b_after, W.b, W.b_after, y);
  };
  if (by.complete) {
    by.pending ? rows(learn_rows<true, true>) : rows(learn_rows<false, true>);
  } else {
    W.keep(m, n);
    by.pending ? rows(learn_rows<true, false>) : rows(learn_rows<false, false>);
  }
  for (int64_t j = 0; j < n; ++j) y[j] -= by.s * by.kq * by.G[j];
}

/// One head at a time.
class Step {
 public:
  Step(Scratch& scratch, const TTTCall& call, const TTTStep& step)
      : call_(call), step_(step), head_(scratch, call, 1), K_(call.K), F_(4 * call.K) {
    for (float** row : {&X_, &Z_, &G_}) *row = scratch.take(head_.Kp);
    for (float** row : {&U_, &Y_, &h_, &a_, &G1_}) *row = scratch.take(padded(F_));
  }

  void linear(int64_t index) {
    begin(index);
    Weights W(step_.W[0], head_.b, head_.h, K_, K_);
    const Weights D(step_.D[0], head_.b, head_.h, K_, K_);
    if (restart_) W.restart(call_.initial[0], head_.h, K_, K_);
    apply<2>(K_, K_, W.W, W.b, {head_.k[0], head_.q[0]}, {X_, Z_});
    head_.learn(at_, 1, {X_, head_.Kp}, G_);
    learn(K_, K_, learned(head_.k[0], head_.q[0], K_, G_), W, D, Z_);
    head_.answer(at_, 1, {Z_, head_.Kp}, step_.o);
  }

  void mlp(int64_t index) {
    begin(index);
    Weights W1(step_.W[0], head_.b, head_.h, K_, F_), W2(step_.W[1], head_.b, head_.h, F_, K_);
    const Weights D1(step_.D[0], head_.b, head_.h, K_, F_), D2(step_.D[1], head_.b, head_.h, F_, K_);
    if (restart_) {
      W1.restart(call_.initial[0], head_.h, K_, F_);
      W2.restart(call_.initial[1], head_.h, F_, K_);
    }
    apply<2>(K_, F_, W1.W, W1.b, {head_.k[0], head_.q[0]}, {U_, Y_});
    for (int64_t j = 0; j < F_; j += kLanes) {
      const Gelu gelu(load(U_ + j));
      store(gelu.value(), h_ + j);
      store(gelu.slope(), U_ + j);
    }
    apply<1>(F_, K_, W2.W, W2.b, {h_}, {X_});
    head_.learn(at_, 1, {X_, head_.Kp}, G_);
    apply_transposed(F_, K_, W2.W, G_, G1_);
    for (int64_t j = 0; j < F_; j += kLanes) store(hn::Mul(load(G1_ + j), load(U_ + j)), G1_ + j);
    learn(K_, F_, learned(head_.k[0], head_.q[0], K_, G1_), W1, D1, Y_);
    for (int64_t j = 0; j < F_; j += kLanes) store(Gelu(load(Y_ + j)).value(), a_ + j);
    apply<1>(F_, K_, W2.W, W2.b, {a_}, {Z_});
    learn(F_, K_, learned(h_, a_, F_, G_), W2, D2, Z_);
    head_.answer(at_, 1, {Z_, head_.Kp}, step_.o);
  }

 private:
  void begin(int64_t index) {
    head_.select(0, index);
    head_.begin();
    const int64_t position = step_.position[head_.b];
    place_ = position % call_.C, restart_ = position == 0;
    at_ = Place(call_, index, {.first = 0, .count = 1});
    head_.read(at_, 1);
    for (float* row : {X_, Z_}) std::fill(row + K_, row + head_.Kp, 0.0f);
  }
  Learned learned(const float* k, const float* q, int64_t m, const float* G) const {
    const float kq = dot(k, q, m) + head_.one();
    return {k, q, kq, G, call_.scale[place_], call_.scale[call_.C - 1], place_ > 0, place_ == call_.C - 1};
  }

  const TTTCall& call_;
  const TTTStep& step_;
  Head head_;
  const int64_t K_, F_;
  Place at_;
  int64_t place_ = 0;
  bool restart_ = false;
  float *X_, *Z_, *G_;             // [Kp]: f(k), f(q), and the gradient of the first
  float *U_, *Y_, *h_, *a_, *G1_;  // [F]: the hidden layer of k and of q, their gelu, the gradient of U
};

template <void (Step::*head)(int64_t)>
void step_all(const TTTCall& call, const TTTStep& step, int64_t state) {
  const auto some = [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Step each(scratch, call, step);
    for (int64_t i = begin; i < end; ++i) (each.*head)(i);
  };
  const int64_t heads = call.B * call.H;
  parallel(heads, heads * state, some);
}

void step_linear(const TTTCall& call, const TTTStep& step) { step_all<&Step::linear>(call, step, 2 * call.K * call.K); }
void step_mlp(const TTTCall& call, const TTTStep& step) { step_all<&Step::mlp>(call, step, 16 * call.K * call.K); }

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(step_linear);
HWY_EXPORT(step_mlp);

namespace cpu {

void ttt_linear_step(const TTTCall& call, const TTTStep& step) { HWY_DYNAMIC_DISPATCH(step_linear)(call, step); }
void ttt_mlp_step(const TTTCall& call, const TTTStep& step) { HWY_DYNAMIC_DISPATCH(step_mlp)(call, step); }

}  // namespace cpu
}  // namespace lineal::kernels
#endif
