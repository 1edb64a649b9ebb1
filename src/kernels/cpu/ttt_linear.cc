// TTT-Linear in the dual form, one (row, head) at a time with its state in cache.            formulas: mixers/ttt.h
//
// Forward, an inner batch of C tokens that starts at W, D (a bias is the last row of W; then k and q end with a 1):
//   X = k W                                 xhat, r = normal form and 1/std of its rows;  e = gamma xhat + beta -
//   target g_X = r (u - <u> - xhat <u xhat>),      u = gamma e;   G = eta g_X                    <.>: mean over a row
//   Z = q W - s (P G + q D),                P = tril(q k^T)
//   D' = D + k^T G;                         W' = W - s_C D' and D' = 0 at the end of the inner batch
//   o = gamma zhat + beta (+ q)
// Backward, from the gradients dO, dW', dD' of a block; at the end of an inner batch dD' = -s_C dW', ds_C = -<dW', D'>:
//   dZ    = r (h - <h> - zhat <h zhat>),    h = gamma dO                                  r, zhat of Z
//   S     = tril(dZ G^T) with rows times -s;                                              the gradient of P
//   ds    = -rowsum(P . tril(dZ G^T)) - rowsum(dZ . q D)
//   dG    = P^T (-s dZ) + k dD';            deta = rowsum(dG . g_X)
//   w     = eta dG;  du = r (w - <w> - xhat <w xhat>);  de = gamma du = -dtarget
//   dxhat = gamma de - r (<u xhat> w + <w xhat> u)
//   dX    = r (dxhat - <dxhat> - xhat <dxhat xhat>) - r xhat <w g_X>
//   dq    = dZ W^T + S k - s dZ D^T;        dk = dX W^T + S^T q + G dD'^T
//   dW    = dW' + q^T dZ + k^T dX;          dD = dD' + q^T (-s dZ)
// W and dW are kept transposed there, for the products dZ W^T and G dD'^T.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ttt_linear.cc"
#include <hwy/foreach_target.h>

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
  int64_t first, step, first_token, token_step;

  Place(const TTTLinearCall& call, int64_t b, int64_t h, const InnerBlock& block)
      : first_token((b * call.T + block.first) * call.H + h), token_step(call.H) {
    first = first_token * call.K;
    step = token_step * call.K;
  }
  int64_t row(int64_t i) const { return first + i * step; }
  int64_t token(int64_t i) const { return first_token + i * token_step; }
};

/// What forward and backward share of one head. A is K and the bias; columns are padded.
struct Head {
  const TTTLinearCall& call;
  int64_t K, A, Kp, Ap, Cp;
  float* kq;         // [2C, Ap]: k of a block, with 1 for the bias, and q under it
  float* target;     // [C, Kp]
  float* k_columns;  // [Ap, Cp]: k transposed
  float* P;          // [C, Cp]
  Norm norm;

  Head(Scratch& scratch, const TTTLinearCall& the_call)
      : call(the_call), K(call.K), A(call.K + call.bias()), Kp(padded(K)), Ap(padded(A)), Cp(padded(call.C)) {
    kq = scratch.take(2 * Cp * Ap);
    target = scratch.take(Cp * Kp);
    k_columns = scratch.take(Ap * Cp);
    P = scratch.take(Cp * Cp);
    norm = {K, Kp, scratch.take(Kp), scratch.take(Kp), scratch.take(Kp)};
    std::fill_n(norm.valid, K, 1.0f);
  }

  void select(int64_t h) const {
    if (!call.norm) return;
    copy(call.gamma + h * K, K, norm.gamma);
    copy(call.beta + h * K, K, norm.beta);
  }

  float* k(int64_t i) const { return kq + i * Ap; }
  float* q(int64_t c, int64_t i) const { return kq + (c + i) * Ap; }

  void load(const Place& at, int64_t c) const {
    for (int64_t i = 0; i < c; ++i) {
      float *k_i = k(i), *q_i = q(c, i), *target_i = target + i * Kp;
      copy_padded(call.k + at.row(i), K, Ap, k_i);
      copy_padded(call.q + at.row(i), K, Ap, q_i);
      if (call.bias()) k_i[K] = q_i[K] = 1;
      copy_padded(call.v + at.row(i), K, Kp, target_i);
      if (call.residual) add_scaled(-1, k_i, K, target_i);
    }
    transpose(c, A, kq, Ap, k_columns, Cp);
  }

  /// P = tril(q k^T).
  void scores(int64_t c) const {
    product<Store::set>(c, c, A, {q(c, 0), Ap}, k_columns, Cp, P, Cp);
    for (int64_t i = 0; i < c; ++i) std::fill(P + i * Cp + i + 1, P + (i + 1) * Cp, 0.0f);
  }

  /// G = eta g_X and e from xhat (X itself without norm), row by row; returns the inner loss.
  float loss_gradient(int64_t i, const float* X, float r, float* e, float* g) const {
    const float* target_i = target + i * Kp;
    if (call.norm) return norm.loss_gradient(X, r, target_i, e, g);
    copy(X, Kp, e);
    add_scaled(-1, target_i, Kp, e);
    copy(e, Kp, g);
    return dot(e, e, Kp) / 2;
  }

  /// [A, Kp], the bias its last row, from and to the tensors.
  void load(const Linear<const float>& from, int64_t index, float* W) const {
    for (int64_t i = 0; i < K; ++i) copy_padded(from.W + (index * K + i) * K, K, Kp, W + i * Kp);
    if (call.bias()) copy_padded(from.b + index * K, K, Kp, W + K * Kp);
  }
  void store(const float* W, int64_t index, const Linear<float>& to) const {
    for (int64_t i = 0; i < K; ++i) copy(W + i * Kp, K, to.W + (index * K + i) * K);
    if (call.bias()) copy(W + K * Kp, K, to.b + index * K);
  }
};

// ---- forward -------------------------------------------------------------------------------------------------------

class Forward {
 public:
  Forward(Scratch& scratch, const TTTLinearCall& call, const TTTLinearResult& result)
      : call_(call), result_(result), head_(scratch, call), Kp_(head_.Kp) {
    W_ = scratch.take(head_.Ap * Kp_);
    D_ = scratch.take(head_.Ap * Kp_);
    Z_ = scratch.take(2 * head_.Cp * Kp_);
    G_ = scratch.take(head_.Cp * Kp_);
    e_ = scratch.take(Kp_);
  }

  /// `saved`: where the states of this row and head go, or null.
  void row(int64_t b, int64_t h, float* saved) {
    const int64_t index = b * call_.H + h;
    const auto& blocks = call_.blocks[static_cast<size_t>(b)];
    head_.select(h);
    head_.load(call_.W, index, W_);
    pending_ = blocks.front().place > 0;
    if (pending_) head_.load(call_.D, index, D_);
    for (size_t n = 0; n < blocks.size(); ++n) {
      if (blocks[n].restart) {
        head_.load(call_.initial, h, W_);
        pending_ = false;
      }
      if (saved && static_cast<int64_t>(n) % call_.keep == 0) {
        copy(W_, call_.state_size(), saved);
        saved += call_.state_size();
      }
      const double before = block(Place(call_, b, h, blocks[n]), blocks[n]);
      if (!result_.inner_loss) continue;
      result_.inner_loss[2 * index] += before;
      result_.inner_loss[2 * index + 1] += loss_after(blocks[n]);
    }
    if (!pending_) std::fill_n(D_, head_.A * Kp_, 0.0f);
    head_.store(W_, index, result_.W);
    head_.store(D_, index, result_.D);
  }

 private:
  /// Returns the inner loss before the step.
  double block(const Place& at, const InnerBlock& block) {
    const int64_t c = block.count, K = head_.K, A = head_.A;
    float* Zq = Z_ + c * Kp_;
    head_.load(at, c);
    product<Store::set>(2 * c, K, A, {head_.kq, head_.Ap}, W_, Kp_, Z_, Kp_);
    double loss = 0;
    for (int64_t i = 0; i < c; ++i) {
      prefetch(call_.k + at.row(c + i), K);
      prefetch(call_.v + at.row(c + i), K);
      loss += learn(at, i);
    }
    const float* scale_i = call_.scale + block.place;
    if (pending_) {
      product<Store::set>(c, K, A, {head_.q(c, 0), head_.Ap}, D_, Kp_, Z_, Kp_);  // f(k) is spent
      for (int64_t i = 0; i < c; ++i) add_scaled(-scale_i[i], Z_ + i * Kp_, Kp_, Zq + i * Kp_);
    }
    head_.scores(c);
    for (int64_t i = 0; i < c; ++i) scale(-scale_i[i], i + 1, head_.P + i * head_.Cp);
    product<Store::add>(c, K, c, {head_.P, head_.Cp}, G_, Kp_, Zq, Kp_, 1, /*lower=*/true);
    for (int64_t i = 0; i < c; ++i) {
      prefetch(call_.q + at.row(c + i), K);
      answer(at, i, Zq + i * Kp_, head_.q(c, i));
    }
    step(block);
    return loss;
  }

  /// Row i of G.
  float learn(const Place& at, int64_t i) {
    float *X = Z_ + i * Kp_, *G = G_ + i * Kp_;
    const float r = call_.norm ? head_.norm.normalize(X) : 1;
    if (call_.k_normal) copy(X, head_.K, call_.k_normal + at.row(i));
    if (call_.k_rstd) call_.k_rstd[at.token(i)] = r;
    const float loss = head_.loss_gradient(i, X, r, e_, G);
    scale(call_.eta[at.token(i)], Kp_, G);
    return loss;
  }

  /// Row i of o from f(q_i), which it destroys.
  void answer(const Place& at, int64_t i, float* z, const float* q) {
    if (call_.norm) {
      const float r = head_.norm.normalize(z);
      if (call_.q_normal) copy(z, head_.K, call_.q_normal + at.row(i));
      if (call_.q_rstd) call_.q_rstd[at.token(i)] = r;
      head_.norm.affine(z);
    }
    if (call_.residual) add_scaled(1, q, head_.K, z);
    copy(z, head_.K, result_.o + at.row(i));
  }

  void step(const InnerBlock& block) {
    const Elements k_transposed{head_.kq, 1, head_.Ap};
    const int64_t c = block.count, A = head_.A, K = head_.K;
    const float last = call_.scale[call_.C - 1];
    if (block.complete && !pending_) {
      product<Store::add>(A, K, c, k_transposed, G_, Kp_, W_, Kp_, -last);
    } else if (pending_) {
      product<Store::add>(A, K, c, k_transposed, G_, Kp_, D_, Kp_);
      if (block.complete) add_scaled(-last, D_, A * Kp_, W_);
    } else {
      product<Store::set>(A, K, c, k_transposed, G_, Kp_, D_, Kp_);
    }
    pending_ = !block.complete;
  }

  /// The inner loss of the block's tokens under the weights it leaves, pending steps included.
  double loss_after(const InnerBlock& block) {
    const int64_t c = block.count;
    product<Store::set>(c, head_.K, head_.A, {head_.kq, head_.Ap}, W_, Kp_, Z_, Kp_);
    if (pending_) {
      const float scale = -call_.scale[block.place + c - 1];
      product<Store::add>(c, head_.K, head_.A, {head_.kq, head_.Ap}, D_, Kp_, Z_, Kp_, scale);
    }
    double sum = 0;
    for (int64_t i = 0; i < c; ++i) {
      float* X = Z_ + i * Kp_;
      const float r = call_.norm ? head_.norm.normalize(X) : 1;
      sum += head_.loss_gradient(i, X, r, e_, G_);
    }
    return sum;
  }

  const TTTLinearCall& call_;
  const TTTLinearResult& result_;
  Head head_;
  int64_t Kp_;
  bool pending_ = false;  // D is not zero
  float *W_, *D_;         // [A, Kp]
  float* Z_;              // [2C, Kp]: f(k) over f(q)
  float *G_, *e_;         // [C, Kp], [Kp]
};

// ---- backward ------------------------------------------------------------------------------------------------------

class Backward {
 public:
  Backward(Scratch& scratch, const TTTLinearCall& call, const TTTLinearGradients& gradients)
      : call_(call), d_(gradients), head_(scratch, call), Kp_(head_.Kp), Ap_(head_.Ap), Cp_(head_.Cp) {
    const int64_t tokens = Cp_ * Kp_;
    states_ = scratch.take(call.keep * Kp_ * Kp_);
    D_ = scratch.take(Ap_ * Kp_);
    work_ = scratch.take((Ap_ + 3) * Kp_);
    for (Gradient* gradient : {&dW_, &dD_, &dinitial_}) {
      *gradient = {scratch.take(Kp_ * Kp_), scratch.take(Kp_)};
    }
    normal_ = scratch.take(tokens);
    r_ = scratch.take(Cp_);
    e_ = scratch.take(tokens);
    g_ = scratch.take(tokens);
    G_ = scratch.take(tokens);
    dG_ = scratch.take(tokens);
    dXZ_ = scratch.take(2 * tokens);
    dkq_ = scratch.take(2 * tokens);
    columns_ = scratch.take(tokens);
    S_ = scratch.take(Cp_ * Cp_);
    dgamma_ = scratch.take(Kp_);
    dbeta_ = scratch.take(Kp_);
    dscale_ = scratch.take(Cp_);
  }

  /// `saved`: the states of this row and head.
  void row(int64_t b, int64_t h, const float* saved) {
    const int64_t index = b * call_.H + h, K = head_.K, keep = call_.keep;
    const auto& blocks = call_.blocks[static_cast<size_t>(b)];
    const auto count = static_cast<int64_t>(blocks.size());
    head_.select(h);
    for (float* sum : {dgamma_, dbeta_}) std::fill_n(sum, Kp_, 0.0f);
    std::fill_n(dscale_, call_.C, 0.0f);
    clear(dinitial_);
    load(d_.W_after, index, dW_);
    load(d_.D_after, index, dD_);
    if (blocks.front().place > 0) head_.load(call_.D, index, D_);
    for (int64_t first = (count - 1) / keep * keep; first >= 0; first -= keep) {
      const int64_t last = std::min(count, first + keep);
      const auto state = [&](int64_t n) { return states_ + (n - first) * Kp_ * Kp_; };
      transpose(K, K, saved + first / keep * call_.state_size(), Kp_, state(first), Kp_);
      for (int64_t n = first; n + 1 < last; ++n) advance(b, h, n, state(n), state(n + 1));
      for (int64_t n = last - 1; n >= first; --n) block(b, h, n, state(n));
    }
    store(dW_, index, d_.W);
    store(dinitial_, index, d_.initial);
    if (call_.norm) {
      copy(dgamma_, K, d_.gamma + index * K);
      copy(dbeta_, K, d_.beta + index * K);
    }
    copy(dscale_, call_.C, d_.scale + index * call_.C);
  }

 private:
  /// Of W or D: [Kp, Kp] transposed, and of the bias.
  struct Gradient {
    float *WT = nullptr, *b = nullptr;
  };

  void clear(const Gradient& gradient) const {
    std::fill_n(gradient.WT, Kp_ * Kp_, 0.0f);
    std::fill_n(gradient.b, Kp_, 0.0f);
  }
  void load(const Linear<const float>& from, int64_t index, const Gradient& to) {
    head_.load(from, index, work_);
    transpose(head_.K, head_.K, work_, Kp_, to.WT, Kp_);
    if (call_.bias()) copy(work_ + head_.K * Kp_, Kp_, to.b);
  }
  /// work_ = alpha times the gradient, as [A, Kp].
  void to_work(const Gradient& from, float alpha) {
    transpose(head_.K, head_.K, from.WT, Kp_, work_, Kp_);
    if (call_.bias()) copy(from.b, Kp_, work_ + head_.K * Kp_);
    scale(alpha, head_.A * Kp_, work_);
  }
  void store(const Gradient& from, int64_t index, const Linear<float>& to) {
    to_work(from, 1);
    head_.store(work_, index, to);
  }

  /// W^T at the start of block n + 1 from that of block n.
  void advance(int64_t b, int64_t h, int64_t n, const float* WT, float* next) {
    const auto& blocks = call_.blocks[static_cast<size_t>(b)];
    const InnerBlock& block = blocks[static_cast<size_t>(n)];
    if (blocks[static_cast<size_t>(n) + 1].restart) {
      head_.load(call_.initial, h, work_);
      transpose(head_.K, head_.K, work_, Kp_, next, Kp_);
      return;
    }
    const Place at(call_, b, h, block);
    const float last = call_.scale[call_.C - 1];
    head_.load(at, block.count);
    recall(at, block.count);
    copy(WT, Kp_ * Kp_, next);
    product<Store::add>(head_.K, head_.K, block.count, {G_, 1, Kp_}, head_.kq, Ap_, next, Kp_, -last);
    if (n == 0 && block.place > 0) {
      transpose(head_.K, head_.K, D_, Kp_, work_, Kp_);
      add_scaled(-last, work_, Kp_ * Kp_, next);
    }
  }

  /// xhat, e, g and G of the block's tokens, from what forward saved.
  void recall(const Place& at, int64_t c) {
    for (int64_t i = 0; i < c; ++i) {
      float *normal = normal_ + i * Kp_, *g = g_ + i * Kp_, *G = G_ + i * Kp_;
      copy_padded(call_.k_normal + at.row(i), head_.K, Kp_, normal);
      r_[i] = call_.norm ? call_.k_rstd[at.token(i)] : 1;
      head_.loss_gradient(i, normal, r_[i], e_ + i * Kp_, g);
      copy(g, Kp_, G);
      scale(call_.eta[at.token(i)], Kp_, G);
    }
  }

  void block(int64_t b, int64_t h, int64_t n, const float* WT) {
    const InnerBlock& block = call_.blocks[static_cast<size_t>(b)][static_cast<size_t>(n)];
    const Place at(call_, b, h, block);
    const int64_t c = block.count, K = head_.K;
    const float f = block.complete ? -call_.scale[call_.C - 1] : 1;  // dD' is f times dW' or what came from outside
    const Gradient& step = block.complete ? dW_ : dD_;
    float *dX = dXZ_, *dZ = dXZ_ + c * Kp_, *dk = dkq_, *dq = dkq_ + c * Kp_;
    head_.load(at, c);
    recall(at, c);
    for (int64_t i = 0; i < c; ++i) answer(at, i, dZ + i * Kp_);
    scores(block, dZ);
    product<Store::set>(K, c, K, {step.WT, Kp_}, head_.k_columns, Cp_, columns_, Cp_);  // (k dD')^T
    transpose(K, c, columns_, Cp_, dG_, Kp_);
    float along = 0;  // <dW', D'>
    for (int64_t i = 0; i < c; ++i) {
      float* row = dG_ + i * Kp_;
      if (call_.bias()) add_scaled(1, step.b, Kp_, row);
      if (block.complete) along += dot(row, G_ + i * Kp_, Kp_);
      scale(f, Kp_, row);
    }
    product<Store::add>(c, K, c, {head_.P, 1, Cp_}, dZ, Kp_, dG_, Kp_);
    for (int64_t i = 0; i < c; ++i) learn(at, i, dX + i * Kp_);

    product<Store::set>(2 * c, K, K, {dXZ_, Kp_}, WT, Kp_, dkq_, Kp_);
    product<Store::add>(c, K, c, {S_, Cp_}, head_.kq, Ap_, dq, Kp_, 1, /*lower=*/true);
    product<Store::add>(c, K, c, {S_, 1, Cp_}, head_.q(c, 0), Ap_, dk, Kp_);
    product<Store::add>(c, K, K, {G_, Kp_}, step.WT, Kp_, dk, Kp_, f);
    if (n == 0 && block.place > 0) along += pending_steps(b * call_.H + h, block, f, step, dZ, dq);
    if (block.complete) dscale_[call_.C - 1] -= along;
    for (int64_t i = 0; i < c; ++i) give(at, i, dk + i * Kp_, dq + i * Kp_);

    product<Store::add>(K, K, 2 * c, {dXZ_, 1, Kp_}, head_.kq, Ap_, dW_.WT, Kp_);
    for (int64_t i = 0; i < 2 * c; ++i) add_scaled(1, dXZ_ + i * Kp_, Kp_, dW_.b);
    clear(dD_);  // only the last block's steps are given back
    if (block.restart) {
      add_scaled(1, dW_.WT, Kp_ * Kp_, dinitial_.WT);
      add_scaled(1, dW_.b, Kp_, dinitial_.b);
      clear(dW_);
    }
  }

  /// Row i of dZ.
  void answer(const Place& at, int64_t i, float* dZ) {
    copy_padded(d_.o + at.row(i), head_.K, Kp_, dZ);
    if (!call_.norm) return;
    copy_padded(call_.q_normal + at.row(i), head_.K, Kp_, work_);
    head_.norm.backward(work_, call_.q_rstd[at.token(i)], dZ, dZ, dgamma_, dbeta_);
  }

  /// P and S with rows times -s, and ds.
  void scores(const InnerBlock& block, const float* dZ) {
    const int64_t c = block.count;
    transpose(c, head_.K, G_, Kp_, columns_, Cp_);
    product<Store::set>(c, c, head_.K, {dZ, Kp_}, columns_, Cp_, S_, Cp_);
    head_.scores(c);
    for (int64_t i = 0; i < c; ++i) {
      float *P = head_.P + i * Cp_, *S = S_ + i * Cp_;
      const float s = call_.scale[block.place + i];
      std::fill(S + i + 1, S + Cp_, 0.0f);
      dscale_[block.place + i] -= dot(P, S, i + 1);
      scale(-s, i + 1, P);
      scale(-s, i + 1, S);
    }
  }

  /// Row i of dX; e becomes de.
  void learn(const Place& at, int64_t i, float* dX) {
    const int64_t row = i * Kp_;
    const float eta = call_.eta[at.token(i)];
    float& deta = d_.eta[at.token(i)];
    if (call_.norm) {
      deta = head_.norm.loss_gradient_backward(normal_ + row, r_[i], e_ + row, g_ + row, eta, dG_ + row, dX, e_ + row,
                                               dgamma_, dbeta_);
      return;
    }
    deta = dot(dG_ + row, g_ + row, Kp_);
    copy(dG_ + row, Kp_, dX);
    scale(eta, Kp_, dX);
    copy(dX, Kp_, e_ + row);
  }

  /// What the steps D that the block found taken have a part in: dD, dq and ds. Returns <dW', D> at the end of an inner
  /// batch.
  float pending_steps(int64_t index, const InnerBlock& block, float f, const Gradient& step, const float* dZ,
                      float* dq) {
    const int64_t c = block.count, K = head_.K, A = head_.A;
    to_work(step, 1);
    const float along = block.complete ? dot(work_, D_, A * Kp_) : 0;
    scale(f, A * Kp_, work_);
    float* qD = G_;  // both are spent
    float* dR = dG_;
    product<Store::set>(c, K, A, {head_.q(c, 0), Ap_}, D_, Kp_, qD, Kp_);
    for (int64_t i = 0; i < c; ++i) {
      dscale_[block.place + i] -= dot(dZ + i * Kp_, qD + i * Kp_, Kp_);
      copy(dZ + i * Kp_, Kp_, dR + i * Kp_);
      scale(-call_.scale[block.place + i], Kp_, dR + i * Kp_);
    }
    product<Store::add>(A, K, c, {head_.q(c, 0), 1, Ap_}, dR, Kp_, work_, Kp_);
    head_.store(work_, index, d_.D);
    transpose(K, K, D_, Kp_, work_, Kp_);
    product<Store::add>(c, K, K, {dR, Kp_}, work_, Kp_, dq, Kp_);
    return along;
  }

  /// Row i of the gradients of k, q and v.
  void give(const Place& at, int64_t i, float* dk, float* dq) {
    const float* de = e_ + i * Kp_;
    if (call_.residual) {
      add_scaled(1, de, head_.K, dk);
      add_scaled(1, d_.o + at.row(i), head_.K, dq);
    }
    copy(dk, head_.K, d_.k + at.row(i));
    copy(dq, head_.K, d_.q + at.row(i));
    float* dv = d_.v + at.row(i);
    copy(de, head_.K, dv);
    scale(-1, head_.K, dv);
  }

  const TTTLinearCall& call_;
  const TTTLinearGradients& d_;
  Head head_;
  int64_t Kp_, Ap_, Cp_;
  Gradient dW_, dD_, dinitial_;
  float* states_;             // [keep][Kp, Kp]: W^T at the start of each block of a group
  float* D_;                  // [A, Kp]
  float* work_;               // [A, Kp]
  float *normal_, *r_;        // xhat and r of X
  float *e_, *g_, *G_, *dG_;  // [C, Kp]
  float *dXZ_, *dkq_;         // [2C, Kp]: dX over dZ, dk over dq
  float* columns_;            // [Kp, Cp]
  float* S_;                  // [C, Cp]
  float *dgamma_, *dbeta_, *dscale_;
};

void forward(const TTTLinearCall& call, const TTTLinearResult& result) {
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Forward kernel(scratch, call, result);
    for (int64_t i = begin; i < end; ++i) {
      kernel.row(i / call.H, i % call.H, call.states ? call.states + call.saved_before(i) : nullptr);
    }
  });
}

void backward(const TTTLinearCall& call, const TTTLinearGradients& gradients) {
  parallel(call.B * call.H, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Backward kernel(scratch, call, gradients);
    for (int64_t i = begin; i < end; ++i) {
      kernel.row(i / call.H, i % call.H, call.states + call.saved_before(i));
    }
  });
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

namespace cpu {

int64_t TTTLinearCall::state_size() const { return padded(K + bias()) * padded(K); }

int64_t TTTLinearCall::saved_before(int64_t index) const {
  int64_t count = 0;
  for (int64_t b = 0; b < index / H; ++b) count += H * saved(b);
  if (index < B * H) count += index % H * saved(index / H);
  return count * state_size();
}

void ttt_linear_forward(const TTTLinearCall& call, const TTTLinearResult& result) {
  HWY_DYNAMIC_DISPATCH(forward)(call, result);
}

void ttt_linear_backward(const TTTLinearCall& call, const TTTLinearGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
