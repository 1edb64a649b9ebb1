// TTT-MLP in the dual form, one (row, head) at a time with its state in cache.          formulas: mixers/ttt_mlp.cc
//
// Forward, an inner batch of C tokens that starts at W1, W2 and D1, D2; g is gelu (a bias is the last row of W; then k,
// q, h and a end with a 1); o, xhat, r, e and g_X as in ttt_linear.cc:
//   U = k W1,  h = g(U);  X = h W2;         G2 = eta g_X;   M = G2 W2^T;   G1 = M . g'(U)
//   Y = q W1 - s (P1 G1 + q D1),            P1 = tril(q k^T);              a = g(Y)
//   Z = a W2 - s (P2 G2 + a D2),            P2 = tril(a h^T)
//   D1' = D1 + k^T G1,  D2' = D2 + h^T G2;  W' = W - s_C D' and D' = 0 at the end of the inner batch
// Backward, from dO, dW', dD' of a block; at the end of an inner batch dD' = -s_C dW', ds_C = -<dW', D'>:
//   dZ from dO as in ttt_linear.cc
//   S2  = tril(dZ G2^T) with rows times -s;                                               the gradient of P2
//   dA  = dZ W2^T + S2 h - s dZ D2^T;       dY = dA . g'(Y)
//   S1  = tril(dY G1^T) with rows times -s;                                               the gradient of P1
//   ds  = -rowsum(P2 . tril(dZ G2^T)) - rowsum(dZ . a D2) - rowsum(P1 . tril(dY G1^T)) - rowsum(dY . q D1)
//   dG1 = P1^T (-s dY) + k dD1';            dM = dG1 . g'(U)
//   dG2 = P2^T (-s dZ) + h dD2' + dM W2;    from it deta, dX and the gradient of the target as in ttt_linear.cc
//   dh  = S2^T a + G2 dD2'^T + dX W2^T;     dU = dh . g'(U) + dG1 . M . g''(U)
//   dq  = dY W1^T + S1 k - s dY D1^T;       dk = dU W1^T + S1^T q + G1 dD1'^T
//   dW1 = dW1' + q^T dY + k^T dU;           dW2 = dW2' + a^T dZ + h^T dX + dM^T G2
//   dD1 = dD1' + q^T (-s dY);               dD2 = dD2' + a^T (-s dZ)
// States are saved at every keep-th block. From the next one W is stepped back to each block between them, W2 first,
// from the saved U, xhat and r; where there is no next one, or a document begins on the way, forth again.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ttt_mlp.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/gelu-inl.h"
#include "kernels/cpu/ttt-inl.h"
#include "kernels/cpu/ttt_mlp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

class Forward {
 public:
  static constexpr int64_t kTogether = 1;

  Forward(Scratch& scratch, const TTTCall& call, const TTTResult& result)
      : call_(call), result_(result), head_(scratch, call, kTogether), pairs_(call), width_(pairs_.width) {
    const int64_t Cp = head_.Cp, Kp = head_.Kp, row = width_.row;
    W_ = pairs_.take(scratch);
    D_ = pairs_.take(scratch);
    W2T_ = scratch.take(Kp * row);
    U_ = scratch.take(Cp * row);
    Y_ = scratch.take(Cp * row);
    h_ = scratch.take(2 * Cp * row);
    G1_ = scratch.take(Cp * row);
    X_ = scratch.take(Cp * Kp);
    Z_ = scratch.take(Cp * Kp);
    G2_ = scratch.take(Cp * Kp);
    columns_ = scratch.take(row * Cp);
  }

  void select(int64_t slot, int64_t index) { head_.select(slot, index); }
  void begin(bool pending) {
    head_.begin();
    pairs_.load(call_.W, head_.index, W_);
    pending_ = pending;
    if (pending_) pairs_.load(call_.D, head_.index, D_);
  }
  void restart() {
    pairs_.load(call_.initial, head_.h, W_);
    pending_ = false;
  }
  void save(float* to) {
    copy(W_.W1, pairs_.size1, to);
    copy(W_.W2, width_.F * head_.Kp, to + pairs_.size1);
  }
  void end() {
    if (!pending_) pairs_.clear(D_);
    pairs_.store(W_, head_.index, result_.W);
    pairs_.store(D_, head_.index, result_.D);
  }

  /// Returns the inner loss before the step.
  double block(const InnerBlock& block) {
    const Place at(call_, head_.index, block);
    const int64_t c = block.count, K = head_.K, Kp = head_.Kp, Cp = head_.Cp, F = width_.F, row = width_.row;
    const float* s = call_.scale + block.place;
    float* a = h_ + c * row;
    head_.read(at, c);
    const Elements k{head_.k.data, head_.k.step}, q{head_.q.data, head_.q.step};
    ahead_.begin(at.after(c), c, K,
                 {Ahead::stream(call_.k), Ahead::stream(call_.q), Ahead::stream(call_.v), Ahead::stream(result_.o)});
    product<Store::set>(c, F, K, k, W_.W1, row, U_, row);
    product<Store::set>(c, F, K, q, W_.W1, row, Y_, row);
    ahead_.some(4);
    activate(c, width_, pairs_.b1(W_), call_.bias, U_, h_, pairs_.kept(head_, block));
    product<Store::set>(c, K, width_.A, {h_, row}, W_.W2, Kp, X_, Kp);
    ahead_.some(4);
    const double loss = head_.learn(at, c, {X_, Kp}, G2_);
    transpose(F, K, W_.W2, Kp, W2T_, row);
    product<Store::set>(c, F, K, {G2_, Kp}, W2T_, row, G1_, row);
    ahead_.some(4);
    multiply<Store::set>(c, F, row, G1_, U_, G1_);

    if (pending_) {
      product<Store::set>(c, F, K, q, D_.W1, row, U_, row);  // g'(U) is spent
      for (int64_t i = 0; i < c; ++i) {
        add_scaled(-s[i], U_ + i * row, row, Y_ + i * row);
        add_scaled(-s[i], pairs_.b1(D_), row, Y_ + i * row);
      }
    }
    head_.scores(c, s);
    product<Store::add>(c, F, c, {head_.P, Cp}, G1_, row, Y_, row, 1, /*lower=*/true);
    activate(c, width_, pairs_.b1(W_), call_.bias, Y_, a);

    product<Store::set>(c, K, width_.A, {a, row}, W_.W2, Kp, Z_, Kp);
    ahead_.some(c);
    if (pending_) {
      product<Store::set>(c, K, width_.A, {a, row}, D_.W2, Kp, X_, Kp);  // f(k) is spent
      for (int64_t i = 0; i < c; ++i) add_scaled(-s[i], X_ + i * Kp, Kp, Z_ + i * Kp);
    }
    transpose(c, width_.A, h_, row, columns_, Cp);
    product<Store::set>(c, c, width_.A, {a, row}, columns_, Cp, head_.P, Cp);
    head_.mask(c, s, 0, head_.P);
    product<Store::add>(c, K, c, {head_.P, Cp}, G2_, Kp, Z_, Kp, 1, /*lower=*/true);
    head_.answer(at, c, {Z_, Kp}, result_.o);
    step(block);
    return loss;
  }

  /// The inner loss of the block's tokens under the weights it leaves, pending steps included.
  double loss_after(const InnerBlock& block) {
    const int64_t c = block.count, row = width_.row;
    const float scale = -call_.scale[block.place + c - 1];
    const auto layer = [&](int64_t n, int64_t k, Elements x, const float* W, const float* D, float* y, int64_t y_row) {
      product<Store::set>(c, n, k, x, W, y_row, y, y_row);
      if (pending_) product<Store::add>(c, n, k, x, D, y_row, y, y_row, scale);
    };
    layer(width_.F, head_.K, {head_.k.data, head_.k.step}, W_.W1, D_.W1, U_, row);
    float* b = Y_;
    copy(pairs_.b1(W_), row, b);
    if (pending_) add_scaled(scale, pairs_.b1(D_), row, b);
    activate(c, width_, b, call_.bias, U_, h_);
    layer(head_.K, width_.A, {h_, row}, W_.W2, D_.W2, X_, head_.Kp);
    return head_.loss(c, {X_, head_.Kp}, G2_);
  }

 private:
  void step(const InnerBlock& block) {
    const float last = call_.scale[call_.C - 1];
    if (block.complete && !pending_) {
      pairs_.step<Store::add>(block.count, head_, G1_, h_, G2_, -last, W_);
    } else if (pending_) {
      pairs_.step<Store::add>(block.count, head_, G1_, h_, G2_, 1, D_);
      if (block.complete) pairs_.add(-last, D_, W_);
    } else {
      pairs_.step<Store::set>(block.count, head_, G1_, h_, G2_, 1, D_);
    }
    pending_ = !block.complete;
  }

  const TTTCall& call_;
  const TTTResult& result_;
  Head head_;
  Ahead ahead_;
  Pairs pairs_;
  Width width_;
  bool pending_ = false;  // D is not zero
  Pair W_, D_;
  float* W2T_;      // [K, row]
  float *U_, *Y_;   // [C, row], without the bias
  float* h_;        // [2C, row]: h over a
  float* G1_;       // [C, row]
  float *X_, *Z_;   // [C, Kp]
  float* G2_;       // [C, Kp]
  float* columns_;  // [row, Cp]: h transposed
};

class Backward {
 public:
  static constexpr int64_t kTogether = 1;

  Backward(Scratch& scratch, const TTTCall& call, const TTTGradients& gradients)
      : call_(call), d_(gradients), head_(scratch, call, gradients, kTogether), pairs_(call), width_(pairs_.width) {
    const int64_t Cp = head_.Cp, Kp = head_.Kp, row = width_.row;
    states_.resize(static_cast<size_t>(call.keep));
    for (size_t i = 1; i < states_.size(); ++i) states_[i] = pairs_.take(scratch);
    for (Pair* pair : {&W_, &D_, &dW_, &dD_, &dinitial_}) *pair = pairs_.take(scratch);
    wide_ = scratch.take(Kp * row);
    narrow_ = scratch.take(row * Kp);
    UY_ = scratch.take(2 * Cp * row);
    haM_ = scratch.take(3 * Cp * row);
    AG_ = scratch.take(2 * Cp * row);
    dUY_ = scratch.take(2 * Cp * row);
    for (float** tile : {&bend_, &dh_, &dG1_, &R1_}) *tile = scratch.take(Cp * row);
    XZG_ = scratch.take(3 * Cp * Kp);
    dG2_ = scratch.take(Cp * Kp);
    R2_ = scratch.take(Cp * Kp);
    columns_ = scratch.take(row * Cp);
    for (float** scores : {&P1_, &S1_, &P2_, &S2_}) *scores = scratch.take(Cp * Cp);
  }

  void select(int64_t slot, int64_t index) {
    head_.select(slot, index);
    blocks_ = call_.blocks[static_cast<size_t>(head_.b)].data();
  }
  void begin() {
    head_.begin();
    pairs_.clear(dinitial_);
    pairs_.load(d_.W_after, head_.index, dW_);
    pairs_.load(d_.D_after, head_.index, dD_);
    last_ = true;
    if (blocks_[0].place > 0) pairs_.load(call_.D, head_.index, D_);
  }
  void end() {
    head_.end();
    pairs_.store(dW_, head_.index, d_.W);
    pairs_.store(dinitial_, head_.index, d_.initial);
  }

  /// Blocks [first, last), which begin at a saved state. W is stepped back from the group after them if that goes on
  /// from here, else forth from the saved one.
  void begin_group(float* saved, int64_t first, int64_t last) {
    states_[0] = {saved, saved + pairs_.size1};
    goes_on_ = head_.goes_on(first, last);
    for (int64_t n = first; !goes_on_ && n + 1 < last; ++n) advance(n, n - first);
  }
  void prefetch(const Place& at, int64_t tokens, const float* saved) { head_.prefetch(at, tokens, saved, ahead_); }

  /// Block n, the i-th of its group.
  void block(int64_t n, int64_t i) {
    const InnerBlock& block = blocks_[n];
    const bool steps_back = goes_on_ && i > 0;
    const Pair& W = i == 0 || steps_back ? W_ : states_[static_cast<size_t>(i)];
    const float last = call_.scale[call_.C - 1];
    const Place at(call_, head_.index, block);
    const bool pending = n == 0 && block.place > 0;
    const float f = block.complete ? -last : 1;  // dD' is f times dW' or what came from outside
    const Pair& step = block.complete ? dW_ : dD_;
    const int64_t c = block.count, K = head_.K, Kp = head_.Kp, Cp = head_.Cp;
    const int64_t F = width_.F, row = width_.row;
    float *dX = XZG_, *dZ = dX + c * Kp, *G2 = dZ + c * Kp, *dA = AG_, *G1 = dA + c * row;
    float *h = haM_, *a = h + c * row, *dM = a + c * row, *U = UY_, *Y = U + c * row;
    float *dU = dUY_, *dY = dU + c * row;

    head_.read(at, c, /*together=*/true);
    const float *k = head_.k.data, *q = head_.q.data;
    head_.recall(at, c, G2);
    head_.answer_backward(at, c, dZ);
    bend(c, pairs_.kept(head_, block), U, h);
    if (i == 0) copy_saved();
    if (steps_back) pairs_.step_second<Store::add>(c, h, G2, last, W_.W2);
    transpose(F, K, W.W2, Kp, wide_, row);
    product<Store::set>(2 * c, F, K, {dZ, Kp}, wide_, row, dA, row);  // dZ W2^T and M
    ahead_.some(2);
    multiply<Store::set>(c, F, row, G1, bend_, bend_);
    multiply<Store::set>(c, F, row, G1, U, G1);
    if (steps_back) pairs_.step_first<Store::add>(c, head_, G1, last, W_.W1);
    product<Store::set>(c, F, K, {q, Kp}, W.W1, row, Y, row);
    product<Store::set>(c, c, K, {q, Kp}, head_.k_columns, Cp, P1_, Cp);
    copy(P1_, c * Cp, head_.P);
    head_.mask(c, call_.scale + block.place, head_.one(), head_.P);
    product<Store::add>(c, F, c, {head_.P, Cp}, G1, row, Y, row, 1, /*lower=*/true);
    if (pending) {
      product<Store::set>(c, F, K, {q, Kp}, D_.W1, row, R1_, row);
      for (int64_t t = 0; t < c; ++t) {
        add_scaled(1, pairs_.b1(D_), row, R1_ + t * row);
        add_scaled(-call_.scale[block.place + t], R1_ + t * row, row, Y + t * row);
      }
    }
    ahead_.some(2);
    activate(c, width_, pairs_.b1(W), call_.bias, Y, a);

    transpose(c, K, G2, Kp, columns_, Cp);
    product<Store::set>(c, c, K, {dZ, Kp}, columns_, Cp, S2_, Cp);
    transpose(c, width_.A, h, row, columns_, Cp);
    product<Store::set>(c, c, width_.A, {a, row}, columns_, Cp, P2_, Cp);
    head_.scores_backward(block, 0, P2_, S2_);
    product<Store::add>(c, F, c, {S2_, Cp}, h, row, dA, row, 1, /*lower=*/true);
    if (pending) second_steps(block, a, dZ, dA);
    ahead_.some(2);
    multiply<Store::set>(c, F, row, dA, Y, dY);

    transpose(c, F, G1, row, columns_, Cp);
    product<Store::set>(c, c, F, {dY, row}, columns_, Cp, S1_, Cp);
    head_.scores_backward(block, head_.one(), P1_, S1_);
    float along = 0;  // <dW', D'>
    product<Store::set>(c, F, K, {k, Kp}, step.W1, row, dG1_, row);
    for (int64_t t = 0; t < c; ++t) add_scaled(1, pairs_.b1(step), F, dG1_ + t * row);
    product<Store::set>(c, K, width_.A, {h, row}, step.W2, Kp, dG2_, Kp);
    if (block.complete) along = dot(dG1_, G1, c * row) + dot(dG2_, G2, c * Kp);
    scale(f, c * row, dG1_);
    scale(f, c * Kp, dG2_);
    product<Store::add>(c, F, c, {head_.P, 1, Cp}, dY, row, dG1_, row);
    product<Store::add>(c, K, c, {P2_, 1, Cp}, dZ, Kp, dG2_, Kp);
    ahead_.some(2);
    multiply<Store::set>(c, F, row, dG1_, U, dM);
    for (int64_t t = 0; t < c; ++t) dM[t * row + F] = 0;
    product<Store::add>(c, K, F, {dM, row}, W.W2, Kp, dG2_, Kp);
    head_.learn_backward(at, c, dG2_, dX);

    product<Store::set>(c, F, K, {dX, Kp}, wide_, row, dh_, row);
    transpose(F, K, step.W2, Kp, wide_, row);
    product<Store::add>(c, F, K, {G2, Kp}, wide_, row, dh_, row, f);
    ahead_.some(2);
    product<Store::add>(c, F, c, {S2_, 1, Cp}, a, row, dh_, row);
    ahead_.some(2);
    multiply<Store::set>(c, F, row, dG1_, bend_, dU);
    multiply<Store::add>(c, F, row, dh_, U, dU);

    transpose(K, F, W.W1, row, narrow_, Kp);
    const Rows<float> dk = head_.dk, dq = head_.dq;
    product<Store::add>(c, K, F, {dU, row}, narrow_, Kp, dk.data, dk.step);
    product<Store::add>(c, K, F, {dY, row}, narrow_, Kp, dq.data, dq.step);
    transpose(K, F, step.W1, row, narrow_, Kp);
    product<Store::add>(c, K, F, {G1, row}, narrow_, Kp, dk.data, dk.step, f);
    ahead_.some(2);
    product<Store::add>(c, K, c, {S1_, Cp}, k, Kp, dq.data, dq.step, 1, /*lower=*/true);
    product<Store::add>(c, K, c, {S1_, 1, Cp}, q, Kp, dk.data, dk.step);
    if (pending) along += pending_steps(block, f, step);
    if (block.complete) head_.dscale[call_.C - 1] -= along;
    head_.end_block(at, c);

    product<Store::add>(K, F, 2 * c, {k, 1, Kp}, dU, row, dW_.W1, row);
    if (call_.bias) add_rows(1, dU, 2 * c, row, dW_.W1 + K * row);
    ahead_.some(c);
    product<Store::add>(width_.A, K, 3 * c, {h, 1, row}, dX, Kp, dW_.W2, Kp);
    if (std::exchange(last_, false)) pairs_.clear(dD_);  // only the last block's steps are given back
    if (block.restart) {
      pairs_.add(1, dW_, dinitial_);
      pairs_.clear(dW_);
    }
  }

 private:
  /// W at the start of block n + 1 from that of block n, the i-th of its group.
  void advance(int64_t n, int64_t i) {
    const InnerBlock& block = blocks_[n];
    const Pair &W = states_[static_cast<size_t>(i)], &next = states_[static_cast<size_t>(i) + 1];
    if (blocks_[n + 1].restart) return pairs_.load(call_.initial, head_.h, next);
    const Place at(call_, head_.index, block);
    const int64_t c = block.count, row = width_.row;
    const float last = call_.scale[call_.C - 1];
    float *G1 = AG_, *G2 = XZG_;
    head_.read(at, c);
    head_.recall(at, c, G2);
    bend(c, pairs_.kept(head_, block), UY_, haM_);
    transpose(width_.F, head_.K, W.W2, head_.Kp, wide_, row);
    product<Store::set>(c, width_.F, head_.K, {G2, head_.Kp}, wide_, row, G1, row);
    multiply<Store::set>(c, width_.F, row, G1, UY_, G1);
    copy(W.W1, pairs_.size1, next.W1);
    copy(W.W2, width_.F * head_.Kp, next.W2);
    pairs_.step<Store::add>(c, head_, G1, haM_, G2, -last, next);
    if (n == 0 && block.place > 0) pairs_.add(-last, D_, next);
  }

  /// h = g(U), then U = g'(U) and bend = g''(U), of what forward saved.
  void bend(int64_t c, const float* saved, float* U, float* h) {
    for (int64_t i = 0; i < c; ++i, saved += width_.kept, U += width_.row, h += width_.row) {
      for (int64_t j = 0; j < width_.F; j += kLanes) {
        const Gelu gelu(load(saved + j));
        store(gelu.value(), h + j);
        store(gelu.slope(), U + j);
        store(gelu.curvature(), bend_ + i * width_.row + j);
      }
      if (call_.bias) h[width_.F] = 1;
    }
  }
  void copy_saved() {
    copy(states_[0].W1, pairs_.size1, W_.W1);
    copy(states_[0].W2, width_.F * head_.Kp, W_.W2);
  }

  /// What the steps D2 that the block found taken have a part in: ds and dA. R2 = -s dZ is left for pending_steps.
  void second_steps(const InnerBlock& block, const float* a, const float* dZ, float* dA) {
    const int64_t c = block.count, K = head_.K, Kp = head_.Kp, F = width_.F, row = width_.row;
    product<Store::set>(c, K, width_.A, {a, row}, D_.W2, Kp, R2_, Kp);
    back(block, Kp, dZ, R2_);
    transpose(F, K, D_.W2, Kp, narrow_, row);
    product<Store::add>(c, F, K, {R2_, Kp}, narrow_, row, dA, row);
  }

  /// The same for D1: ds and dq; and the gradient of both. Returns <dW', D> at the end of an inner batch.
  float pending_steps(const InnerBlock& block, float f, const Pair& step) {
    const int64_t c = block.count, K = head_.K, Kp = head_.Kp, F = width_.F, row = width_.row;
    const float along = block.complete ? pairs_.inner(step, D_) : 0;
    back(block, row, dUY_ + c * row, R1_);
    transpose(K, F, D_.W1, row, narrow_, Kp);
    product<Store::add>(c, K, F, {R1_, row}, narrow_, Kp, head_.dq.data, head_.dq.step);
    pairs_.clear(D_);
    pairs_.add(f, step, D_);
    product<Store::add>(K, F, c, {head_.q.data, 1, head_.q.step}, R1_, row, D_.W1, row);
    if (call_.bias) add_rows(1, R1_, c, row, D_.W1 + K * row);
    product<Store::add>(width_.A, K, c, {haM_ + c * row, 1, row}, R2_, Kp, D_.W2, Kp);
    pairs_.store(D_, head_.index, d_.D);
    return along;
  }

  /// Of an output moved by -s R, with gradient dy [c, n]: ds, and R becomes -s dy.
  void back(const InnerBlock& block, int64_t n, const float* dy, float* R) const {
    for (int64_t t = 0; t < block.count; ++t, dy += n, R += n) {
      head_.dscale[block.place + t] -= dot(dy, R, n);
      copy(dy, n, R);
      scale(-call_.scale[block.place + t], n, R);
    }
  }

  const TTTCall& call_;
  const TTTGradients& d_;
  HeadBackward head_;
  Ahead ahead_;
  Pairs pairs_;
  Width width_;
  const InnerBlock* blocks_ = nullptr;
  bool last_ = true;          // the block at hand is
  bool goes_on_ = false;      // the group after this one has W as this one leaves it
  std::vector<Pair> states_;  // W at the start of each block of a group, the first as saved
  Pair W_;                    // of the block at hand; the bias in W2, which nothing asks for, is not kept
  Pair D_, dW_, dD_, dinitial_;
  float *wide_, *narrow_;        // [K, row], [F, Kp]: transposed weights
  float *UY_, *haM_, *AG_;       // [2C, row], [3C, row], [2C, row]: U over Y; h, a and dM; dA over G1
  float* dUY_;                   // [2C, row]
  float *bend_, *dh_, *dG1_;     // [C, row]; g''(U), then M . g''(U) the first
  float* XZG_;                   // [3C, Kp]: dX, dZ and G2
  float* dG2_;                   // [C, Kp]
  float *R1_, *R2_;              // [C, row], [C, Kp]: what the steps before the call gave
  float* columns_;               // [row, Cp]
  float *P1_, *S1_, *P2_, *S2_;  // [C, Cp]
};

[[maybe_unused]] int64_t hidden(int64_t K) { return Width::kept_of(K); }
[[maybe_unused]] int64_t state_size(int64_t K) { return (K + 1) * Width::row_of(K) + 4 * K * padded(K); }

void gelu_all(const float* x, int64_t n, float* value, float* slope, float* curvature) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t lanes = std::min(kLanes, n - j);
    HWY_ALIGN float one[kLanes] = {}, result[kLanes];
    std::copy_n(x + j, lanes, one);
    const Gelu gelu(load(one));
    for (const auto& [to, y] :
         {std::pair(value, gelu.value()), std::pair(slope, gelu.slope()), std::pair(curvature, gelu.curvature())}) {
      store(y, result);
      std::copy_n(result, lanes, to + j);
    }
  }
}

void forward(const TTTCall& call, const TTTResult& result) { forward_all<Forward>(call, result); }
void backward(const TTTCall& call, const TTTGradients& gradients) { backward_all<Backward>(call, gradients); }

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(gelu_all);
HWY_EXPORT(forward);
HWY_EXPORT(backward);

namespace cpu {

const TTTKernel ttt_mlp = {
    .name = "ttt_mlp",
    .layers = 2,
    .keep = 8,
    .state_size = [](int64_t K) { return HWY_STATIC_DISPATCH(state_size)(K); },
    .hidden = [](int64_t K) { return HWY_STATIC_DISPATCH(hidden)(K); },
    .forward =
        [](const TTTCall& call, const TTTResult& result) {
          HWY_DYNAMIC_DISPATCH(forward)
          (call, result);
        },
    .step = ttt_mlp_step,
    .backward =
        [](const TTTCall& call, const TTTGradients& d) {
          HWY_DYNAMIC_DISPATCH(backward)
          (call, d);
        },
};

void gelu(const float* x, int64_t n, float* value, float* slope, float* curvature) {
  HWY_DYNAMIC_DISPATCH(gelu_all)(x, n, value, slope, curvature);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
