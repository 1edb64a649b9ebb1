// What the TTT kernels share whatever the inner model: where tokens lie, loads and stores in float32 or bfloat16, the
// inner loss, the walk over a row's inner batches in both directions.
#if defined(LINEAL_KERNELS_CPU_TTT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_TTT_INL_H_
#undef LINEAL_KERNELS_CPU_TTT_INL_H_
#else
#define LINEAL_KERNELS_CPU_TTT_INL_H_
#endif

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/cpu/ttt.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

/// Where a block's tokens of one row and head lie: element (i, 0) of [B, T, H, K] and of [B, T, H].
struct Place {
  int64_t first = 0, step = 0, first_token = 0, token_step = 0;

  Place() = default;
  /// index = b * H + h
  Place(const TTTCall& call, int64_t index, const InnerBlock& block)
      : first_token((index / call.H * call.T + block.first) * call.H + index % call.H), token_step(call.H) {
    first = first_token * call.K;
    step = token_step * call.K;
  }
  int64_t row(int64_t i) const { return first + i * step; }
  int64_t token(int64_t i) const { return first_token + i * token_step; }
  /// The place `tokens` further.
  Place after(int64_t tokens) const {
    Place next = *this;
    next.first = row(tokens), next.first_token = token(tokens);
    return next;
  }
};

/// to [0, n) = x from element `at` on, zeros up to `padded`.
HWY_INLINE void load_row(Tokens<const void> x, int64_t at, int64_t n, int64_t padded, float* to) {
  if (x.bfloat16) {
    widen(static_cast<const uint16_t*>(x.data) + at, n, to);
    std::fill(to + n, to + padded, 0.0f);
  } else {
    copy_padded(static_cast<const float*>(x.data) + at, n, padded, to);
  }
}

HWY_INLINE void store_row(const float* from, int64_t n, Tokens<void> x, int64_t at) {
  if (x.bfloat16) {
    narrow(from, n, static_cast<uint16_t*>(x.data) + at);
  } else {
    copy(from, n, static_cast<float*>(x.data) + at);
  }
}

/// Asks memory for the rows of the next block, a few between the pieces of this one's products: all at once they would
/// wait for one another.
class Ahead {
 public:
  /// Of `rows` tokens at `at`, K numbers each of every stream: pointer and bytes of a number.
  struct Stream {
    const void* data;
    int64_t bytes;
  };
  template <class Void>
  static Stream stream(Tokens<Void> x) {
    return {x.data, x.bfloat16 ? 2 : 4};
  }
  static Stream stream(const float* x) { return {x, 4}; }

  void begin(const Place& at, int64_t rows, int64_t K, std::initializer_list<Stream> streams) {
    at_ = at, left_ = rows, K_ = K, i_ = 0;
    count_ = 0;
    for (const Stream& s : streams) {
      if (s.data) streams_[count_++] = s;
    }
  }
  void some(int64_t rows) {
    for (; rows > 0 && left_ > 0; --rows, --left_, ++i_) {
      for (size_t s = 0; s < count_; ++s) {
        const char* row = static_cast<const char*>(streams_[s].data) + at_.row(i_) * streams_[s].bytes;
        for (int64_t j = 0; j < K_ * streams_[s].bytes; j += 64) hwy::Prefetch(row + j);
      }
    }
  }

 private:
  Place at_;
  int64_t left_ = 0, K_ = 0, i_ = 0;
  size_t count_ = 0;
  Stream streams_[9];
};

/// product in pieces, with `rows` of the next block between them.
template <Store store_as>
void product_ahead(Ahead& ahead, int64_t rows, int64_t m, int64_t n, int64_t k, Elements a, const float* b,
                   int64_t b_row, float* c, int64_t c_row, float alpha = 1) {
  constexpr int64_t kPiece = 12;
  for (int64_t i = 0; i < m; i += kPiece, a.data += kPiece * a.row, c += kPiece * c_row) {
    product<store_as>(std::min(kPiece, m - i), n, k, a, b, b_row, c, c_row, alpha);
    ahead.some(rows);
  }
}

/// W [m, n] and under it the bias, in rows `to_row` apart, from and to tensors with `index` such layers before it.
inline void load_layer(const Layer<const float>& from, int64_t index, int64_t m, int64_t n, float* to, int64_t to_row) {
  const int64_t Np = padded(n);
  for (int64_t i = 0; i < m; ++i) copy_padded(from.W + (index * m + i) * n, n, Np, to + i * to_row);
  if (from.b) copy_padded(from.b + index * n, n, Np, to + m * to_row);
}
inline void store_layer(const float* from, int64_t from_row, int64_t index, int64_t m, int64_t n,
                        const Layer<float>& to) {
  for (int64_t i = 0; i < m; ++i) copy(from + i * from_row, n, to.W + (index * m + i) * n);
  if (to.b) copy(from + m * from_row, n, to.b + index * n);
}

/// The tokens of a block and what is done to them row by row. A is K and the bias; columns are padded.
struct Head {
  const TTTCall& call;
  int64_t K, A, Kp, Ap, Cp;
  float* kq;              // [2C, Ap]: k of a block, with 1 for the bias, and q under it
  float* target;          // [C, Kp]
  float* k_columns;       // [Ap, Cp]: k transposed
  float* P;               // [C, Cp]
  float* row;             // [Kp]
  float *gammas, *betas;  // [together, Kp]
  Norm norm;
  int64_t b = 0, h = 0, index = 0;  // of the head at hand; index = b * H + h

  Head(Scratch& scratch, const TTTCall& the_call, int64_t together)
      : call(the_call), K(call.K), A(call.K + call.bias), Kp(padded(K)), Ap(padded(A)), Cp(padded(call.C)) {
    kq = scratch.take(2 * Cp * Ap);
    target = scratch.take(Cp * Kp);
    k_columns = scratch.take(Ap * Cp);
    P = scratch.take(Cp * Cp);
    row = scratch.take(Kp);
    gammas = scratch.take(together * Kp);
    betas = scratch.take(together * Kp);
    norm = {K, Kp, gammas, betas, scratch.take(Kp)};
    std::fill_n(norm.valid, K, 1.0f);
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

  float* q(int64_t c, int64_t i) const { return kq + (c + i) * Ap; }

  void load(const Place& at, int64_t c) const {
    for (int64_t i = 0; i < c; ++i) {
      float *k_i = kq + i * Ap, *q_i = q(c, i), *target_i = target + i * Kp;
      load_row(call.k, at.row(i), K, Ap, k_i);
      load_row(call.q, at.row(i), K, Ap, q_i);
      load_row(call.v, at.row(i), K, Kp, target_i);
      if (call.residual) add_scaled(-1, k_i, Kp, target_i);
      if (call.bias) k_i[K] = q_i[K] = 1;
    }
    transpose(c, A, kq, Ap, k_columns, Cp);
  }

  /// P = tril(q k^T), with rows times -s if given.
  void scores(int64_t c, const float* s = nullptr) const {
    product<Store::set>(c, c, A, {q(c, 0), Ap}, k_columns, Cp, P, Cp);
    mask(c, s, P);
  }

  /// tril of P [C, Cp], with rows times -s if given.
  void mask(int64_t c, const float* s, float* P_) const {
    for (int64_t i = 0; i < c; ++i) {
      if (s) scale(-s[i], i + 1, P_ + i * Cp);
      std::fill(P_ + i * Cp + i + 1, P_ + (i + 1) * Cp, 0.0f);
    }
  }

  /// eta times the gradient of the inner loss for token i from xhat (X itself without norm); e too; returns the loss.
  float loss_gradient(int64_t i, float eta, const float* X, float r, float* e, float* g) const {
    const float* target_i = target + i * Kp;
    if (call.norm) return norm.loss_gradient(X, eta * r, target_i, e, g);
    for (int64_t j = 0; j < Kp; j += kLanes) {
      const Vec error = hn::Sub(hn::Load(kWide, X + j), hn::Load(kWide, target_i + j));
      hn::Store(error, kWide, e + j);
      hn::Store(hn::Mul(all(eta), error), kWide, g + j);
    }
    return dot(e, e, Kp) / 2;
  }

  /// Row i of G from row i of X, which becomes xhat; kept for the backward pass. Returns the inner loss.
  float learn(const Place& at, int64_t i, float* X, float* G) const {
    const float r = call.norm ? norm.normalize(X) : 1;
    if (call.k_normal) copy(X, K, call.k_normal + at.row(i));
    if (call.k_rstd) call.k_rstd[at.token(i)] = r;
    return loss_gradient(i, call.eta[at.token(i)], X, r, row, G);
  }

  /// Row i of o from f(q_i), which it destroys.
  void answer(const Place& at, int64_t i, float* z, const float* q_i, Tokens<void> o) const {
    if (call.norm) {
      const float r = norm.normalize(z);
      if (call.q_normal) copy(z, K, call.q_normal + at.row(i));
      if (call.q_rstd) call.q_rstd[at.token(i)] = r;
      norm.affine(z);
    }
    if (call.residual) add_scaled(1, q_i, Kp, z);
    store_row(z, K, o, at.row(i));
  }

  /// The sum of the inner losses of f(k) = X, which it destroys with its scratch space g.
  double loss(int64_t c, float* X, float* g) const {
    double sum = 0;
    for (int64_t i = 0; i < c; ++i) {
      const float r = call.norm ? norm.normalize(X + i * Kp) : 1;
      sum += loss_gradient(i, 1, X + i * Kp, r, row, g);
    }
    return sum;
  }
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
}

/// What the backward pass does row by row, and the gradients of shared inputs.
struct HeadBackward : Head {
  const TTTGradients& d;
  float *normal, *r;                  // [C, Kp], [C]: xhat and r of X
  float *e, *g;                       // [C, Kp]
  float *dgammas, *dbetas, *dscales;  // [together, ...]
  float *dgamma = nullptr, *dbeta = nullptr, *dscale = nullptr;

  HeadBackward(Scratch& scratch, const TTTCall& the_call, const TTTGradients& gradients, int64_t together)
      : Head(scratch, the_call, together), d(gradients) {
    for (float** tile : {&normal, &e, &g}) *tile = scratch.take(Cp * Kp);
    r = scratch.take(Cp);
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

  /// xhat, e, g and G of the block's tokens, from what forward saved.
  void recall(const Place& at, int64_t c, float* G) const {
    for (int64_t i = 0; i < c; ++i) {
      copy_padded(call.k_normal + at.row(i), K, Kp, normal + i * Kp);
      r[i] = call.norm ? call.k_rstd[at.token(i)] : 1;
      loss_gradient(i, 1, normal + i * Kp, r[i], e + i * Kp, g + i * Kp);
      const Vec eta = all(call.eta[at.token(i)]);
      for (int64_t j = 0; j < Kp; j += kLanes) {
        hn::Store(hn::Mul(eta, hn::Load(kWide, g + i * Kp + j)), kWide, G + i * Kp + j);
      }
    }
  }

  /// Row i of dZ.
  void answer_backward(const Place& at, int64_t i, float* dZ) const {
    load_row(d.o, at.row(i), K, Kp, dZ);
    if (!call.norm) return;
    copy_padded(call.q_normal + at.row(i), K, Kp, row);
    norm.backward(row, call.q_rstd[at.token(i)], dZ, dZ, dgamma, dbeta);
  }

  /// T = tril(dZ G^T) [C, Cp] becomes the gradient of P, rows times -s; P = tril(q k^T) gets rows times -s; ds.
  void scores_backward(const InnerBlock& block, float* P_, float* T) const {
    for (int64_t i = 0; i < block.count; ++i) {
      dscale[block.place + i] -= dot(P_ + i * Cp, T + i * Cp, i + 1);
    }
    mask(block.count, call.scale + block.place, P_);
    mask(block.count, call.scale + block.place, T);
  }

  /// Row i of dX from row i of dG; e becomes de, and deta is given.
  void learn_backward(const Place& at, int64_t i, const float* dG, float* dX) const {
    const float eta = call.eta[at.token(i)];
    float *e_i = e + i * Kp, *g_i = g + i * Kp, &deta = d.eta[at.token(i)];
    if (call.norm) {
      deta = norm.loss_gradient_backward(normal + i * Kp, r[i], e_i, g_i, eta, dG, dX, e_i, dgamma, dbeta);
      return;
    }
    deta = dot(dG, g_i, Kp);
    for (int64_t j = 0; j < Kp; j += kLanes) {
      const Vec dx = hn::Mul(all(eta), hn::Load(kWide, dG + j));
      hn::Store(dx, kWide, dX + j);
      hn::Store(dx, kWide, e_i + j);
    }
  }

  /// Row i of the gradients of k, q and v, the first two without what the residual adds.
  void give(const Place& at, int64_t i, float* dk, float* dq) const {
    float* de = e + i * Kp;
    if (call.residual) {
      add_scaled(1, de, Kp, dk);
      load_row(d.o, at.row(i), K, Kp, row);
      add_scaled(1, row, Kp, dq);
    }
    scale(-1, Kp, de);
    store_row(dk, K, d.k, at.row(i));
    store_row(dq, K, d.q, at.row(i));
    store_row(de, K, d.v, at.row(i));
  }
};

/// The same backward, in groups of blocks that begin at a saved state.
template <class Model>
void backward_heads(Model& model, const TTTCall& call, int64_t index, int64_t count) {
  const int64_t keep = call.keep, b = index / call.H;
  const auto blocks = static_cast<int64_t>(call.blocks[static_cast<size_t>(b)].size());
  for (int64_t i = 0; i < count; ++i) {
    model.select(i, index + i);
    model.begin();
  }
  for (int64_t first = (blocks - 1) / keep * keep; first >= 0; first -= keep) {
    const int64_t last = std::min(blocks, first + keep);
    for (int64_t i = 0; i < count; ++i) {
      model.select(i, index + i);
      model.recall_state(call.states + call.saved_before(index + i) + first / keep * call.state_size);
      for (int64_t n = first; n + 1 < last; ++n) model.advance(n, n - first);
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
