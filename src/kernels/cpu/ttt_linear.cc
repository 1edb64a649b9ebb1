// TTT-Linear in the dual form, one (row, head) at a time with its state in cache.            formulas: mixers/ttt.h
//
// Forward, an inner batch of C tokens that starts at W, D (a bias is the last row of W; then k and q end with a 1):
//   X = k W;                                xhat, r = normal form and 1/std of its rows
//   e = gamma xhat + beta - target;         u = gamma e                                     <.>: mean over a row
//   g_X = r (u - <u> - xhat <u xhat>);      G = eta g_X
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

#include "kernels/cpu/ttt-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

class Forward {
 public:
  static constexpr int64_t kTogether = 8;  // their W in the second level of the cache

  Forward(Scratch& scratch, const TTTCall& call, const TTTResult& result)
      : call_(call), result_(result), head_(scratch, call, kTogether), K_(call.K), Kp_(head_.Kp), A_(K_ + 1) {
    for (Slot& slot : slots_) slot = {scratch.take((Kp_ + 1) * Kp_), scratch.take(A_ * Kp_)};  // W is saved padded
    X_ = scratch.take(head_.Cp * Kp_);
    Z_ = scratch.take(head_.Cp * Kp_);
    G_ = scratch.take(head_.Cp * Kp_);
  }

  void select(int64_t slot, int64_t index) {
    head_.select(slot, index);
    slot_ = &slots_[static_cast<size_t>(slot)];
    W_ = slot_->W, D_ = slot_->D;
  }
  void begin(bool pending) {
    head_.begin();
    load_layer(call_.W[0], head_.index, K_, K_, W_, Kp_);
    slot_->pending = pending;
    if (pending) load_layer(call_.D[0], head_.index, K_, K_, D_, Kp_);
  }
  void restart() {
    load_layer(call_.initial[0], head_.h, K_, K_, W_, Kp_);
    slot_->pending = false;
  }
  void save(float* to) { ahead_.copy(W_, call_.state_size, to); }
  void end() {
    if (!slot_->pending) std::fill_n(D_, A_ * Kp_, 0.0f);
    store_layer(W_, Kp_, head_.index, K_, K_, result_.W[0]);
    store_layer(D_, Kp_, head_.index, K_, K_, result_.D[0]);
  }

  /// Returns the inner loss before the step.
  double block(const InnerBlock& block) {
    const Place at(call_, head_.index, block);
    const int64_t c = block.count;
    head_.read(at, c);
    ahead_.begin(at.after(c), c, K_,
                 {Ahead::stream(call_.k), Ahead::stream(call_.q), Ahead::stream(call_.v), Ahead::stream(result_.o)});
    apply(c, head_.k, W_, X_);
    apply(c, head_.q, W_, Z_);
    ahead_.finish_copy();
    const double loss = head_.learn(at, c, {X_, Kp_}, G_);
    const float* s = call_.scale + block.place;
    if (slot_->pending) {
      apply(c, head_.q, D_, X_);  // f(k) is spent
      for (int64_t i = 0; i < c; ++i) add_scaled(-s[i], X_ + i * Kp_, Kp_, Z_ + i * Kp_);
    }
    head_.scores(c, s);
    product<Store::add>(c, K_, c, {head_.P, head_.Cp}, G_, Kp_, Z_, Kp_, 1, /*lower=*/true);
    head_.answer(at, c, {Z_, Kp_}, result_.o);
    step(block);
    return loss;
  }

  /// The inner loss of the block's tokens under the weights it leaves, pending steps included.
  double loss_after(const InnerBlock& block) {
    const int64_t c = block.count;
    product<Store::biased>(c, K_, K_, {head_.k.data, head_.k.step}, W_, Kp_, X_, Kp_);
    if (slot_->pending) {
      product<Store::biased>(c, K_, K_, {head_.k.data, head_.k.step}, D_, Kp_, Z_, Kp_);
      add_scaled(-call_.scale[block.place + c - 1], Z_, c * Kp_, X_);
    }
    return head_.loss(c, {X_, Kp_}, G_);
  }

 private:
  /// y [c, Kp] = x W with the bias.
  void apply(int64_t c, Rows<const float> x, const float* W, float* y) {
    product_ahead<Store::biased>(ahead_, 4, c, K_, K_, {x.data, x.step}, W, Kp_, y, Kp_);
  }

  void step(const InnerBlock& block) {
    const Elements k_transposed{head_.k.data, 1, head_.k.step};
    const int64_t c = block.count;
    const float last = call_.scale[call_.C - 1];
    if (block.complete && !slot_->pending) {
      product_ahead<Store::add>(ahead_, 4, K_, K_, c, k_transposed, G_, Kp_, W_, Kp_, -last);
      if (call_.bias) add_rows(-last, G_, c, Kp_, W_ + K_ * Kp_);
    } else {
      if (!slot_->pending) std::fill_n(D_, A_ * Kp_, 0.0f);
      product<Store::add>(K_, K_, c, k_transposed, G_, Kp_, D_, Kp_);
      if (call_.bias) add_rows(1, G_, c, Kp_, D_ + K_ * Kp_);
      if (block.complete) add_scaled(-last, D_, A_ * Kp_, W_);
    }
    slot_->pending = !block.complete;
  }

  const TTTCall& call_;
  const TTTResult& result_;
  Head head_;
  Ahead ahead_;
  int64_t K_, Kp_, A_;
  struct Slot {
    float *W = nullptr, *D = nullptr;  // [A, Kp], the bias last, zero without one
    bool pending = false;              // D is not zero
  };
  Slot slots_[kTogether], *slot_ = nullptr;
  float *W_ = nullptr, *D_ = nullptr;  // of the slot
  float *X_, *Z_, *G_;                 // [C, Kp]; the first two are f(k) and f(q)
};

class Backward {
 public:
  static constexpr int64_t kTogether = Forward::kTogether;

  Backward(Scratch& scratch, const TTTCall& call, const TTTGradients& gradients)
      : call_(call),
        d_(gradients),
        head_(scratch, call, gradients, kTogether),
        K_(call.K),
        Kp_(head_.Kp),
        Cp_(head_.Cp),
        square_(Kp_ * Kp_) {
    const int64_t tokens = Cp_ * Kp_;
    states_ = scratch.take(call.keep * square_);
    D_ = scratch.take((Kp_ + 1) * Kp_);
    work_ = scratch.take((Kp_ + 1) * Kp_);
    for (Slot& slot : slots_) {
      slot.WT = scratch.take(square_);
      for (Gradient* gradient : {&slot.dW, &slot.dD, &slot.dinitial}) {
        *gradient = {scratch.take(square_), scratch.take(Kp_)};
      }
    }
    G_ = scratch.take(tokens);
    dG_ = scratch.take(tokens);
    dXZ_ = scratch.take(2 * tokens);
    columns_ = scratch.take(tokens);
    S_ = scratch.take(Cp_ * Cp_);
  }

  void select(int64_t slot, int64_t index) {
    head_.select(slot, index);
    blocks_ = call_.blocks[static_cast<size_t>(head_.b)].data();
    slot_ = &slots_[slot];
    dW_ = slot_->dW, dD_ = slot_->dD, dinitial_ = slot_->dinitial;
  }
  void begin() {
    head_.begin();
    clear(dinitial_);
    load(d_.W_after[0], dW_);
    load(d_.D_after[0], dD_);
    slot_->last = true;
  }
  void end() {
    head_.end();
    store(dW_, head_.index, d_.W[0]);
    store(dinitial_, head_.index, d_.initial[0]);
  }

  /// Blocks [first, last), which begin at a saved state. W is stepped back from the group after them if that goes on
  /// from here, else forth from the saved one.
  void begin_group(const float* saved, int64_t first, int64_t last) {
    saved_ = saved;
    goes_on_ = head_.goes_on(first, last);
    if (goes_on_) return;
    transpose(K_, K_, saved, Kp_, states_, Kp_);
    for (int64_t n = first; n + 1 < last; ++n) advance(n, n - first);
  }
  void prefetch(const Place& at, int64_t tokens, const float* saved) { head_.prefetch(at, tokens, saved, ahead_); }

  /// Block n, the i-th of its group.
  void block(int64_t n, int64_t i) {
    const InnerBlock& block = blocks_[n];
    const Place at(call_, head_.index, block);
    const int64_t c = block.count;
    const float f = block.complete ? -call_.scale[call_.C - 1] : 1;  // dD' is f times dW' or what came from outside
    const Gradient& step = block.complete ? dW_ : dD_;
    float *dX = dXZ_, *dZ = dXZ_ + c * Kp_;
    head_.read(at, c, /*together=*/true);
    head_.recall(at, c, G_);
    const float* WT = weights(block, i);
    head_.answer_backward(at, c, dZ);
    const float *k = head_.k.data, *q = head_.q.data;
    transpose(c, K_, G_, Kp_, columns_, Cp_);
    product<Store::set>(c, c, K_, {dZ, Kp_}, columns_, Cp_, S_, Cp_);
    product<Store::set>(c, c, K_, {q, Kp_}, head_.k_columns, Cp_, head_.P, Cp_);
    head_.scores_backward(block, head_.one(), head_.P, S_);
    product_ahead<Store::set>(ahead_, 2, K_, c, K_, {step.WT, Kp_}, head_.k_columns, Cp_, columns_, Cp_);
    transpose(K_, c, columns_, Cp_, dG_, Kp_);  // k dD'
    float along = add_bias(c, f, step.b);       // <dW', D'>
    product<Store::add>(c, K_, c, {head_.P, 1, Cp_}, dZ, Kp_, dG_, Kp_);
    head_.learn_backward(at, c, dG_, dX);

    const Rows<float> dk = head_.dk, dq = head_.dq;
    product_ahead<Store::add>(ahead_, 2, c, K_, K_, {dX, Kp_}, WT, Kp_, dk.data, dk.step);
    product_ahead<Store::add>(ahead_, 2, c, K_, K_, {dZ, Kp_}, WT, Kp_, dq.data, dq.step);
    product<Store::add>(c, K_, c, {S_, Cp_}, k, Kp_, dq.data, dq.step, 1, /*lower=*/true);
    product<Store::add>(c, K_, c, {S_, 1, Cp_}, q, Kp_, dk.data, dk.step);
    product_ahead<Store::add>(ahead_, 2, c, K_, K_, {G_, Kp_}, step.WT, Kp_, dk.data, dk.step, f);
    if (n == 0 && block.place > 0) along += pending_steps(block, f, step, dZ);
    if (block.complete) head_.dscale[call_.C - 1] -= along;
    head_.end_block(at, c);

    product_ahead<Store::add>(ahead_, 2, K_, K_, 2 * c, {dXZ_, 1, Kp_}, k, Kp_, dW_.WT, Kp_);
    if (call_.bias) add_rows(1, dXZ_, 2 * c, Kp_, dW_.b);
    if (std::exchange(slot_->last, false)) clear(dD_);  // only the last block's steps are given back
    if (block.restart) {
      add_scaled(1, dW_.WT, square_, dinitial_.WT);
      add_scaled(1, dW_.b, Kp_, dinitial_.b);
      clear(dW_);
    }
  }

 private:
  /// Of W or D: [Kp, Kp] transposed, and of the bias.
  struct Gradient {
    float *WT = nullptr, *b = nullptr;
  };

  /// W^T at the start of block n + 1 from that of block n, the i-th of its group.
  void advance(int64_t n, int64_t i) {
    const InnerBlock& block = blocks_[n];
    float *WT = states_ + i * square_, *next = WT + square_;
    if (blocks_[n + 1].restart) {
      load_layer({call_.initial[0].W, nullptr}, head_.h, K_, K_, work_, Kp_);
      transpose(K_, K_, work_, Kp_, next, Kp_);
      return;
    }
    const Place at(call_, head_.index, block);
    const float last = call_.scale[call_.C - 1];
    head_.read(at, block.count);
    head_.recall(at, block.count, G_);
    copy(WT, square_, next);
    product<Store::add>(K_, K_, block.count, {G_, 1, Kp_}, head_.k.data, head_.k.step, next, Kp_, -last);
    if (n == 0 && block.place > 0) {
      load_layer(call_.D[0], head_.index, K_, K_, D_, Kp_);
      transpose(K_, K_, D_, Kp_, work_, Kp_);
      add_scaled(-last, work_, square_, next);
    }
  }

  /// W^T at the start of a block whose k and G are at hand, the i-th of its group.
  const float* weights(const InnerBlock& block, int64_t i) {
    float* WT = slot_->WT;
    if (!goes_on_) {
      if (i == 0) copy(states_, square_, WT);
      return states_ + i * square_;
    }
    if (i == 0) {
      transpose(K_, K_, saved_, Kp_, WT, Kp_);
    } else {
      const float last = call_.scale[call_.C - 1];
      product_ahead<Store::add>(ahead_, 2, K_, K_, block.count, {G_, 1, Kp_}, head_.k.data, head_.k.step, WT, Kp_,
                                last);
    }
    return WT;
  }

  void clear(const Gradient& gradient) const {
    std::fill_n(gradient.WT, square_, 0.0f);
    std::fill_n(gradient.b, Kp_, 0.0f);
  }
  void load(const Layer<const float>& from, const Gradient& to) {
    load_layer(from, head_.index, K_, K_, work_, Kp_);
    transpose(K_, K_, work_, Kp_, to.WT, Kp_);
    if (call_.bias) copy(work_ + K_ * Kp_, Kp_, to.b);
  }
  /// work_ = alpha times the gradient, as [K + 1, Kp].
  void to_work(const Gradient& from, float alpha) {
    transpose(K_, K_, from.WT, Kp_, work_, Kp_);
    copy(from.b, Kp_, work_ + K_ * Kp_);
    scale(alpha, (K_ + 1) * Kp_, work_);
  }
  void store(const Gradient& from, int64_t index, const Layer<float>& to) {
    to_work(from, 1);
    store_layer(work_, Kp_, index, K_, K_, to);
  }

  /// dG = f (dG + b); returns the sum of (dG + b) . G.
  float add_bias(int64_t c, float f, const float* b) const {
    Vec sum = hn::Zero(kWide);
    for (int64_t i = 0; i < c * Kp_; i += Kp_) {
      for (int64_t j = 0; j < Kp_; j += kLanes) {
        const Vec d = hn::Add(kernels::HWY_NAMESPACE::load(dG_ + i + j), kernels::HWY_NAMESPACE::load(b + j));
        sum = hn::MulAdd(d, kernels::HWY_NAMESPACE::load(G_ + i + j), sum);
        kernels::HWY_NAMESPACE::store(hn::Mul(all(f), d), dG_ + i + j);
      }
    }
    return total(sum);
  }

  /// What the steps D that the block found taken have a part in: dD, dq and ds. Returns <dW', D> at the end of an inner
  /// batch.
  float pending_steps(const InnerBlock& block, float f, const Gradient& step, const float* dZ) {
    const int64_t c = block.count;
    load_layer(call_.D[0], head_.index, K_, K_, D_, Kp_);
    to_work(step, 1);
    const float along = block.complete ? dot(work_, D_, (K_ + 1) * Kp_) : 0;
    scale(f, (K_ + 1) * Kp_, work_);
    float* qD = G_;  // both are spent
    float* dR = dG_;
    const float* q = head_.q.data;
    product<Store::set>(c, K_, K_, {q, Kp_}, D_, Kp_, qD, Kp_);
    for (int64_t i = 0; i < c; ++i) {
      add_scaled(1, D_ + K_ * Kp_, Kp_, qD + i * Kp_);
      head_.dscale[block.place + i] -= dot(dZ + i * Kp_, qD + i * Kp_, Kp_);
      copy(dZ + i * Kp_, Kp_, dR + i * Kp_);
      scale(-call_.scale[block.place + i], Kp_, dR + i * Kp_);
    }
    product<Store::add>(K_, K_, c, {q, 1, Kp_}, dR, Kp_, work_, Kp_);
    add_rows(1, dR, c, Kp_, work_ + K_ * Kp_);
    store_layer(work_, Kp_, head_.index, K_, K_, d_.D[0]);
    transpose(K_, K_, D_, Kp_, work_, Kp_);
    product<Store::add>(c, K_, K_, {dR, Kp_}, work_, Kp_, head_.dq.data, head_.dq.step);
    return along;
  }

  const TTTCall& call_;
  const TTTGradients& d_;
  HeadBackward head_;
  Ahead ahead_;
  const InnerBlock* blocks_ = nullptr;
  const float* saved_ = nullptr;  // of the group
  bool goes_on_ = false;          // the group after this one has W as this one leaves it
  int64_t K_, Kp_, Cp_, square_;
  struct Slot {
    Gradient dW, dD, dinitial;
    float* WT = nullptr;  // [Kp, Kp]: W^T at the start of the block worked on last
    bool last = true;     // the block at hand is
  };
  Slot slots_[kTogether], *slot_ = nullptr;
  Gradient dW_, dD_, dinitial_;  // of the slot
  float* states_;                // [keep][Kp, Kp]: W^T at the start of each block of a group
  float* D_;                     // [K + 1, Kp], the bias last
  float* work_;                  // [Kp + 1, Kp]
  float *G_, *dG_;               // [C, Kp]
  float* dXZ_;                   // [2C, Kp]: dX over dZ
  float* columns_;               // [Kp, Cp]
  float* S_;                     // [C, Cp]
};

void forward(const TTTCall& call, const TTTResult& result) { forward_all<Forward>(call, result); }
void backward(const TTTCall& call, const TTTGradients& gradients) { backward_all<Backward>(call, gradients); }

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

namespace cpu {

const TTTKernel ttt_linear = {
    .name = "ttt_linear",
    .layers = 1,
    .keep = 8,
    .state_size = [](int64_t K) { return padded(K) * padded(K); },
    .hidden = [](int64_t) -> int64_t { return 0; },
    .forward =
        [](const TTTCall& call, const TTTResult& result) {
          HWY_DYNAMIC_DISPATCH(forward)
          (call, result);
        },
    .step = ttt_linear_step,
    .backward =
        [](const TTTCall& call, const TTTGradients& d) {
          HWY_DYNAMIC_DISPATCH(backward)
          (call, d);
        },
};

}  // namespace cpu
}  // namespace lineal::kernels
#endif
