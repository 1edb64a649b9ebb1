// What the TTT kernels share whatever the inner model: the inner loss of a block's rows, and the walk over a sequence's
// inner batches, in both directions.
#if defined(LINEAL_KERNELS_CPU_TTT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_TTT_INL_H_
#undef LINEAL_KERNELS_CPU_TTT_INL_H_
#else
#define LINEAL_KERNELS_CPU_TTT_INL_H_
#endif

#include "kernels/cpu/norm-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/cpu/ttt.h"
#include "kernels/cpu/ttt_place-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

/// The tokens of a block and what is done to their rows, which are padded.
struct Head {
  const TTTCall& call;
  int64_t K, Kp, Cp;
  Rows<const float> k, q, v;  // where they lie, or in tiles
  Rows<const float> base;     // what is subtracted from v
  float* k_columns;           // [Kp, Cp]: k transposed
  float* P;                   // [C, Cp]
  const float* zeros;         // [Kp]
  float *gammas, *betas;      // [together, Kp]
  Norm norm;
  float *r, *eta;                   // [Norm::room(C)]: of the block's rows
  int64_t b = 0, h = 0, index = 0;  // of the head at hand; index = b * H + h

  Head(Scratch& scratch, const TTTCall& the_call, int64_t together)
      : call(the_call), K(call.K), Kp(padded(K)), Cp(padded(call.C)), norm(scratch, K, call.C) {
    kq_ = scratch.take(2 * Cp * Kp);
    v_ = scratch.take(Cp * Kp);
    o_ = scratch.take(Cp * Kp);
    k_columns = scratch.take(Kp * Cp);
    P = scratch.take(Cp * Cp);
    zeros = scratch.take(Kp);
    gammas = scratch.take(together * Kp);
    betas = scratch.take(together * Kp);
    r = scratch.take(Norm::room(call.C));
    eta = scratch.take(Norm::room(call.C));
  }

  /// The `slot`-th of the heads that are worked on together.
  void select(int64_t slot, int64_t the_index) {
    index = the_index, b = index / call.H, h = index % call.H;
    norm.gamma = gammas + slot * Kp;
    norm.beta = betas + slot * Kp;
  }
  void begin() const {
    if (!call.norm) return;
    copy(call.gamma + h * K, K, norm.gamma);
    copy(call.beta + h * K, K, norm.beta);
  }

  /// Whether c rows of a tensor can be used like a tile: whole vectors, in fours.
  bool in_place(bool bfloat16, int64_t c) const { return !bfloat16 && K == Kp && c % 4 == 0; }

  Rows<const float> input(Tokens<const void> x, const Place& at, int64_t c, float* tile) const {
    if (in_place(x.bfloat16, c)) return {static_cast<const float*>(x.data) + at.first, at.step};
    return gathered(x, at, c, tile);
  }
  Rows<const float> gathered(Tokens<const void> x, const Place& at, int64_t c, float* tile) const {
    for (int64_t i = 0; i < c; ++i) load_row(x, at.row(i), K, Kp, tile + i * Kp);
    return {tile, Kp};
  }
  /// Rows to fill, and what is done when they are.
  Rows<float> output(Tokens<void> x, const Place& at, int64_t c, float* tile) const {
    if (in_place(x.bfloat16, c)) return {static_cast<float*>(x.data) + at.first, at.step};
    return {tile, Kp};
  }
  void finish(Rows<float> rows, Tokens<void> x, const Place& at, int64_t c) const {
    if (in_place(x.bfloat16, c)) return;
    for (int64_t i = 0; i < c; ++i) store_row(rows[i], K, x, at.row(i));
  }
  /// The same for what the backward pass needs, null otherwise: nowhere if it is not there or `finish_kept` copies it.
  Rows<float> kept(float* x, const Place& at, int64_t c) const {
    return x && in_place(false, c) ? output({x, false}, at, c, nullptr) : Rows<float>();
  }
  void finish_kept(Rows<float> rows, float* x, const Place& at, int64_t c) const {
    if (x) finish(rows, {x, false}, at, c);
  }

  /// `together`: k and under it q in one tile.
  void read(const Place& at, int64_t c, bool together = false) {
    k = together ? gathered(call.k, at, c, kq_) : input(call.k, at, c, kq_);
    q = together ? gathered(call.q, at, c, kq_ + c * Kp) : input(call.q, at, c, kq_ + c * Kp);
    v = input(call.v, at, c, v_);
    base = call.residual ? k : none();
    transpose(c, K, k.data, k.step, k_columns, Cp);
  }

  float one() const { return call.bias ? 1 : 0; }

  /// P = tril(q k^T + 1) with a bias, else tril(q k^T), with rows times -s.
  void scores(int64_t c, const float* s) const {
    product<Store::set>(c, c, K, {q.data, q.step}, k_columns, Cp, P, Cp);
    mask(c, s, one(), P);
  }

  /// tril of x + more, x [C, Cp], with rows times -s.
  void mask(int64_t c, const float* s, float more, float* x) const {
    for (int64_t i = 0; i < c; ++i, x += Cp) {
      for (int64_t j = 0; j < Cp; j += kLanes) {
        store(hn::Mul(lower(hn::Add(load(x + j), all(more)), i, j), all(-s[i])), x + j);
      }
    }
  }
  /// The lanes from column j on of row i of a lower triangle.
  static HWY_INLINE Vec lower(Vec x, int64_t i, int64_t j) {
    const auto used = hn::FirstN(kWide, static_cast<size_t>(std::max<int64_t>(0, i + 1 - j)));
    return hn::IfThenElseZero(used, x);
  }

  /// G = eta times the gradient of the inner loss of f(k) = X; xhat, or X without norm, is kept for the backward pass.
  /// Destroys X. Returns the inner loss.
  double learn(const Place& at, int64_t c, Rows<float> X, float* G) const {
    for (int64_t i = 0; i < c; ++i) eta[i] = call.eta[at.token(i)];
    const double loss = gradients(c, X, kept(call.k_normal, at, c), {G, Kp});
    if (call.norm) keep_rstd(at, c, call.k_rstd);
    finish_kept(X, call.k_normal, at, c);
    return loss;
  }

  /// The inner loss of f(k) = X; destroys X and g.
  double loss(int64_t c, Rows<float> X, float* g) const {
    std::fill_n(eta, c, 1.0f);
    return gradients(c, X, {}, {g, Kp});
  }

  /// o from f(q) = Z; destroys Z.
  void answer(const Place& at, int64_t c, Rows<float> Z, Tokens<void> to) const {
    const Rows<float> normal = kept(call.q_normal, at, c), o = output(to, at, c, o_);
    const Rows<const float> also = call.residual ? q : none();
    const float *const gamma = norm.gamma, *const beta = norm.beta;
    const bool kept_later = call.q_normal != nullptr;
    if (call.norm) {
      norm.centre(c, Z, r);
      keep_rstd(at, c, call.q_rstd);
      norm.pass<1, 0, 0>(c, {r}, {}, {}, [=](int64_t i, int64_t j, auto& row, Vec*) {
        const Vec zhat = hn::Mul(load(Z[i] + j), row.of[0]);
        if (normal.data) {
          hn::Stream(zhat, kWide, normal[i] + j);
        } else if (kept_later) {
          store(zhat, Z[i] + j);
        }
        store(hn::Add(hn::MulAdd(zhat, load(gamma + j), load(beta + j)), load(also[i] + j)), o[i] + j);
      });
    } else {
      norm.pass<0, 0, 0>(c, {}, {}, {}, [=](int64_t i, int64_t j, auto&, Vec*) {
        store(hn::Add(load(Z[i] + j), load(also[i] + j)), o[i] + j);
      });
    }
    finish_kept(Z, call.q_normal, at, c);
    finish(o, to, at, c);
  }

 protected:
  Rows<const float> none() const { return {zeros, 0}; }

 private:
  /// r of the block's rows, to where the backward pass finds it, or nowhere.
  void keep_rstd(const Place& at, int64_t c, float* to) const {
    for (int64_t i = 0; i < c && to; ++i) to[at.token(i)] = r[i];
  }

  /// learn and loss for the learning rates eta, with X in `normal` too. G holds e in between.
  HWY_INLINE double gradients(int64_t c, Rows<float> X, Rows<float> normal, Rows<float> G) const {
    if (call.norm) {
      norm.centre(c, X, r);
      return total(norm.loss_gradient<true>(c, X, r, eta, normal, v, base, G, G)) / 2;
    }
    Vec squares = hn::Zero(kWide);
    norm.pass<1, 0, 0>(c, {eta}, {}, {}, [=, this, &squares](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec x = load(X[i] + j), e = error(x, i, j);
      if (normal.data) hn::Stream(x, kWide, normal[i] + j);
      squares = hn::MulAdd(e, e, squares);
      store(hn::Mul(row.of[0], e), G[i] + j);
    });
    return total(squares) / 2;
  }

 protected:
  /// x - (v - base)
  HWY_INLINE Vec error(Vec x, int64_t i, int64_t j) const {
    return hn::Add(hn::Sub(x, load(v[i] + j)), load(base[i] + j));
  }

 private:
  float *kq_, *v_, *o_;  // [2C, Kp], [C, Kp], [C, Kp]
};

/// Walks `count` neighbouring heads of a row forward, block after block: their tokens share pages and rows of memory.
/// index: of the first in B * H.
template <class Model>
void forward_heads(Model& model, const TTTCall& call, const TTTResult& result, int64_t index, int64_t count) {
  const auto& blocks = call.blocks[static_cast<size_t>(index / call.H)];
  for (int64_t i = 0; i < count; ++i) {
    model.select(i, index + i);
    model.begin(blocks.front().place > 0);
  }
  for (size_t n = 0; n < blocks.size(); ++n) {
    for (int64_t i = index; i < index + count; ++i) {
      model.select(i - index, i);
      if (blocks[n].restart) model.restart();
      if (call.states && static_cast<int64_t>(n) % call.keep == 0) {
        model.save(call.states + call.saved_before(i) + static_cast<int64_t>(n) / call.keep * call.state_size);
      }
      const double before = model.block(blocks[n]);
      if (!result.inner_loss) continue;
      result.inner_loss[2 * i] += before;
      result.inner_loss[2 * i + 1] += model.loss_after(blocks[n]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    model.select(i, index + i);
    model.end();
  }
  hwy::FlushStream();
}

/// What the backward pass does row by row, and the gradients of shared inputs.
struct HeadBackward : Head {
  const TTTGradients& d;
  float *dgammas, *dbetas, *dscales;  // [together, ...]
  float *dgamma = nullptr, *dbeta = nullptr, *dscale = nullptr;
  Rows<float> dk, dq;  // to be added to

  HeadBackward(Scratch& scratch, const TTTCall& the_call, const TTTGradients& gradients, int64_t together)
      : Head(scratch, the_call, together), d(gradients) {
    for (float** tile : {&normal_, &zhat_, &e_, &do_, &dk_, &dq_, &dv_}) *tile = scratch.take(Cp * Kp);
    q_r_ = scratch.take(Norm::room(call.C));
    deta_ = scratch.take(Cp);
    dgammas = scratch.take(together * Kp);
    dbetas = scratch.take(together * Kp);
    dscales = scratch.take(together * Cp);
  }

  void select(int64_t slot, int64_t the_index) {
    Head::select(slot, the_index);
    dgamma = dgammas + slot * Kp;
    dbeta = dbetas + slot * Kp;
    dscale = dscales + slot * Cp;
  }
  void begin() const {
    Head::begin();
    for (float* sum : {dgamma, dbeta}) std::fill_n(sum, Kp, 0.0f);
    std::fill_n(dscale, call.C, 0.0f);
  }
  void end() const {
    if (call.norm) {
      copy(dgamma, K, d.gamma + index * K);
      copy(dbeta, K, d.beta + index * K);
    }
    copy(dscale, call.C, d.scale + index * call.C);
  }

  /// Whether W at block `last` of the row is what blocks [first, last) made of the state before them.
  bool goes_on(int64_t first, int64_t last) const {
    const auto& blocks = call.blocks[static_cast<size_t>(b)];
    if (last == static_cast<int64_t>(blocks.size())) return false;
    return std::none_of(blocks.begin() + first + 1, blocks.begin() + last + 1,
                        [](const InnerBlock& block) { return block.restart; });
  }

  /// Has memory bring what the blocks of these tokens read and write, and the state that was saved before them.
  void prefetch(const Place& at, int64_t tokens, const float* saved, Ahead& ahead) const {
    ahead.begin(
        at, tokens, K,
        {Ahead::stream(call.k), Ahead::stream(call.q), Ahead::stream(call.v), Ahead::stream(call.k_normal),
         Ahead::stream(call.q_normal), Ahead::stream(d.o), Ahead::stream(d.k), Ahead::stream(d.q), Ahead::stream(d.v)});
    ahead.also(saved, call.state_size);
  }

  /// xhat, e and G of the block's tokens, from what forward saved.
  void recall(const Place& at, int64_t c, float* G) {
    normal = input({call.k_normal, false}, at, c, normal_);
    const Rows<float> e{e_, Kp}, g{G, Kp};
    for (int64_t i = 0; i < c; ++i) {
      if (call.norm) r[i] = call.k_rstd[at.token(i)];
      eta[i] = call.eta[at.token(i)];
    }
    if (call.norm) {
      norm.loss_gradient<false>(c, normal, r, eta, {}, v, base, e, g);
      return;
    }
    norm.pass<1, 0, 0>(c, {eta}, {}, {}, [=, this](int64_t i, int64_t j, auto& row, Vec*) {
      const Vec wrong = error(load(normal[i] + j), i, j);
      store(wrong, e[i] + j);
      store(hn::Mul(row.of[0], wrong), g[i] + j);
    });
  }

  /// dZ from do; dk and dq begin.
  void answer_backward(const Place& at, int64_t c, float* dZ) {
    const Rows<const float> o = input(d.o, at, c, do_);
    const Rows<const float> zhat = call.norm ? input({call.q_normal, false}, at, c, zhat_) : o;
    dk = output(d.k, at, c, dk_), dq = output(d.q, at, c, dq_);
    const Rows<const float> also = call.residual ? o : none();
    for (int64_t i = 0; i < c; ++i) {
      if (call.norm) {
        q_r_[i] = call.q_rstd[at.token(i)];
      } else {
        copy(o[i], Kp, dZ + i * Kp);
      }
      copy(also[i], Kp, dq[i]);
      if (!call.residual) copy(zeros, Kp, dk[i]);
    }
    if (call.norm) norm.backward(c, zhat, q_r_, o, {dZ, Kp}, dgamma, dbeta);
  }

  /// T = dZ G^T [C, Cp] becomes the gradient of P, tril with rows times -s; P = q k^T becomes tril(P + more) with rows
  /// times -s; ds.
  void scores_backward(const InnerBlock& block, float more, float* P_, float* T) const {
    const float* s = call.scale + block.place;
    for (int64_t i = 0; i < block.count; ++i, P_ += Cp, T += Cp) {
      Vec sum = hn::Zero(kWide);
      for (int64_t j = 0; j < Cp; j += kLanes) {
        const Vec p = lower(hn::Add(load(P_ + j), all(more)), i, j), t = lower(load(T + j), i, j);
        sum = hn::MulAdd(p, t, sum);
        store(hn::Mul(all(-s[i]), p), P_ + j);
        store(hn::Mul(all(-s[i]), t), T + j);
      }
      dscale[block.place + i] -= total(sum);
    }
  }

  /// dX from dG; dv, deta, and what the target gives to dk.
  void learn_backward(const Place& at, int64_t c, const float* dG, float* dX) {
    const Rows<float> e{e_, Kp}, dv = output(d.v, at, c, dv_);
    const Rows<float> dbase = call.residual ? dk : e;
    if (call.norm) {
      norm.loss_gradient_backward(c, normal, r, eta, e, {dG, Kp}, {dX, Kp}, dv, dbase, dgamma, dbeta, deta_);
    }
    for (int64_t i = 0; i < c; ++i) {
      if (!call.norm) {
        const float* given = dG + i * Kp;
        deta_[i] = dot(given, e[i], Kp);
        for (int64_t j = 0; j < Kp; j += kLanes) {
          const Vec dx = hn::Mul(all(eta[i]), load(given + j));
          store(dx, dX + i * Kp + j);
          store(hn::Neg(dx), dv[i] + j);
          store(dx, dbase[i] + j);
        }
      }
      d.eta[at.token(i)] = deta_[i];
    }
    finish(dv, d.v, at, c);
  }

  void end_block(const Place& at, int64_t c) const {
    finish(dk, d.k, at, c);
    finish(dq, d.q, at, c);
  }

 private:
  Rows<const float> normal;                             // xhat of X
  float *normal_, *zhat_, *e_, *do_, *dk_, *dq_, *dv_;  // [C, Kp]
  float *q_r_, *deta_;                                  // [C]
};

/// The same backward, in groups of blocks that begin at a saved state; memory brings a group while the one before it is
/// worked on.
template <class Model>
void backward_heads(Model& model, const TTTCall& call, int64_t index, int64_t count) {
  const auto& row = call.blocks[static_cast<size_t>(index / call.H)];
  const int64_t keep = call.keep, blocks = static_cast<int64_t>(row.size());
  const auto last_of = [&](int64_t first) { return std::min(blocks, first + keep); };
  const auto saved = [&](int64_t i, int64_t first) {
    return call.states + call.saved_before(index + i) + first / keep * call.state_size;
  };
  for (int64_t i = 0; i < count; ++i) {
    model.select(i, index + i);
    model.begin();
  }
  for (int64_t first = (blocks - 1) / keep * keep; first >= 0; first -= keep) {
    const int64_t last = last_of(first);
    for (int64_t i = 0; i < count; ++i) {
      model.select(i, index + i);
      const int64_t next = i + 1 < count ? i + 1 : 0, next_first = next > 0 ? first : first - keep;
      if (next_first >= 0) {
        const InnerBlock &begin = row[static_cast<size_t>(next_first)],
                         &end = row[static_cast<size_t>(last_of(next_first)) - 1];
        model.prefetch(Place(call, index + next, begin), end.first + end.count - begin.first, saved(next, next_first));
      }
      model.begin_group(saved(i, first), first, last);
      for (int64_t n = last - 1; n >= first; --n) model.block(n, n - first);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    model.select(i, index + i);
    model.end();
  }
}

/// work(index, count) for all rows and heads of a call in threads, `most` heads of a row at a time.
template <class Work>
void for_heads(const TTTCall& call, int64_t most, int64_t begin, int64_t end, const Work& work) {
  for (int64_t index = begin, count = 0; index < end; index += count) {
    count = std::min({most, end - index, call.H - index % call.H});
    work(index, count);
  }
}

template <class Forward>
void forward_all(const TTTCall& call, const TTTResult& result) {
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Forward model(scratch, call, result);
    for_heads(call, Forward::kTogether, begin, end,
              [&](int64_t index, int64_t count) { forward_heads(model, call, result, index, count); });
  });
}

template <class Backward>
void backward_all(const TTTCall& call, const TTTGradients& gradients) {
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Backward model(scratch, call, gradients);
    for_heads(call, Backward::kTogether, begin, end,
              [&](int64_t index, int64_t count) { backward_heads(model, call, index, count); });
  });
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_TTT_INL_H_
