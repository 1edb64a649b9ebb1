// RWKV-4's recurrence, a channel in a lane, one token after another.
//   output   e = exp(p - q), f = exp(k_t + u - q), q = max(p, k_t + u);  y_t = (e a + f v_t) / (e b + f)
//   update   g = exp(p + w - r), h = exp(k_t - r), r = max(p + w, k_t);  a' = g a + h v_t, b' = g b + h, p' = r
// Of e and f, and of g and h, one is 1 and the other exp(-|difference|).
//
// Backward, from dy and da', db', dp', with n = e b + f. y does not depend on q, so that
//   da = e dy / n,  db = -e y dy / n,  dv = f dy / n,  dp = e (a - y b) dy / n,  dk = du = f (v - y) dy / n
// a', b' and p' do on r, which follows the larger: with s = p + w
//   s >= k   x = h (v da' + db')      ds += dp' - x,  dk += x
//   s <  k   x = g (a da' + b db')    ds += x,        dk += dp' - x
//   and      da += g da',  db += g db',  dv += h da',  dp += ds,  dw += ds
// The states before each token are computed once more.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/wkv.cc"
#include <hwy/foreach_target.h>

#include <vector>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/wkv.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

struct State {
  Vec a, b, p;
};

/// exp(x - m) and exp(y - m), m the larger.
struct Shares {
  Vec x, y, m;
};
HWY_INLINE Shares shares(Vec x, Vec y) {
  const Vec one = hn::Set(kWide, 1.0f), less = exp(hn::Neg(hn::Abs(hn::Sub(x, y))));
  const auto first = hn::Ge(x, y);
  return {hn::IfThenElse(first, one, less), hn::IfThenElse(first, less, one), hn::Max(x, y)};
}

/// `count` channels from `channel` of row b.
struct Lanes {
  const WkvCall& call;
  int64_t b, channel, count;

  Vec load(const float* x, int64_t t) const { return load_lanes(x + (b * call.T + t) * call.A + channel, count); }
  void store(Vec v, float* x, int64_t t) const { store_lanes(v, x + (b * call.T + t) * call.A + channel, count); }
  Vec of_row(const float* x) const { return load_lanes(x + b * call.A + channel, count); }
  void to_row(Vec v, float* x) const { store_lanes(v, x + b * call.A + channel, count); }
  Vec parameter(const float* x) const { return load_lanes(x + channel, count); }
  Vec before(const StatePart& part) const { return load_lanes(part.before(b) + channel, count); }
  void after(Vec v, const StatePart& part) const { store_lanes(v, part.after(b) + channel, count); }

  bool starts(int64_t t) const { return call.starts && call.starts[b * call.T + t]; }
  State fresh() const { return {hn::Zero(kWide), hn::Zero(kWide), hn::Set(kWide, call.least)}; }
};

HWY_INLINE State advance(const State& s, Vec k, Vec v, Vec w) {
  const Shares share = shares(hn::Add(s.p, w), k);
  return {hn::MulAdd(share.x, s.a, hn::Mul(share.y, v)), hn::MulAdd(share.x, s.b, share.y), share.m};
}

/// Calls f(Lanes) for the channels of all rows, in threads.
template <class F>
void each_lanes(const WkvCall& call, const F& f) {
  const int64_t blocks = (call.A + kLanes - 1) / kLanes;
  parallel(call.B * blocks, call.B * call.T * call.A * 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % blocks * kLanes;
      f(Lanes{call, i / blocks, channel, std::min(kLanes, call.A - channel)});
    }
  });
}

void forward(const WkvCall& call, const WkvState& state, float* y) {
  each_lanes(call, [&](const Lanes& lanes) {
    const Vec w = lanes.parameter(call.w), u = lanes.parameter(call.u);
    State s = {lanes.before(state.a), lanes.before(state.b), lanes.before(state.p)};
    for (int64_t t = 0; t < call.T; ++t) {
      if (lanes.starts(t)) s = lanes.fresh();
      const Vec k = lanes.load(call.k, t), v = lanes.load(call.v, t);
      const Shares share = shares(s.p, hn::Add(k, u));
      const Vec above = hn::MulAdd(share.x, s.a, hn::Mul(share.y, v)), below = hn::MulAdd(share.x, s.b, share.y);
      lanes.store(hn::Div(above, below), y, t);
      s = advance(s, k, v, w);
    }
    lanes.after(s.a, state.a), lanes.after(s.b, state.b), lanes.after(s.p, state.p);
  });
}

void backward(const WkvCall& call, const WkvState& state, const WkvGradients& d) {
  each_lanes(call, [&](const Lanes& lanes) {
    const Vec w = lanes.parameter(call.w), u = lanes.parameter(call.u), zero = hn::Zero(kWide);
    std::vector<float> states(static_cast<size_t>(3 * kLanes * call.T));  // before each token
    State s = {lanes.before(state.a), lanes.before(state.b), lanes.before(state.p)};
    for (int64_t t = 0; t < call.T; ++t) {
      if (lanes.starts(t)) s = lanes.fresh();
      float* at = states.data() + 3 * kLanes * t;
      store_lanes(s.a, at), store_lanes(s.b, at + kLanes), store_lanes(s.p, at + 2 * kLanes);
      s = advance(s, lanes.load(call.k, t), lanes.load(call.v, t), w);
    }
    Vec da = lanes.of_row(d.a_after), db = lanes.of_row(d.b_after), dp = lanes.of_row(d.p_after), dw = zero, du = zero;
    for (int64_t t = call.T - 1; t >= 0; --t) {
      const float* at = states.data() + 3 * kLanes * t;
      const Vec a = load_lanes(at), b = load_lanes(at + kLanes), p = load_lanes(at + 2 * kLanes);
      const Vec k = lanes.load(call.k, t), v = lanes.load(call.v, t), decayed = hn::Add(p, w);
      const Shares next = shares(decayed, k), now = shares(p, hn::Add(k, u));
      const auto follows_past = hn::Ge(decayed, k);
      const Vec from_token = hn::Mul(next.y, hn::MulAdd(v, da, db));
      const Vec from_past = hn::Mul(next.x, hn::MulAdd(a, da, hn::Mul(b, db)));
      const Vec ds = hn::IfThenElse(follows_past, hn::Sub(dp, from_token), from_past);
      const Vec dk = hn::IfThenElse(follows_past, from_token, hn::Sub(dp, from_past));

      const Vec below = hn::MulAdd(now.x, b, now.y), y = hn::Div(hn::MulAdd(now.x, a, hn::Mul(now.y, v)), below);
      const Vec dy = hn::Div(lanes.load(d.y, t), below), past = hn::Mul(now.x, dy), own = hn::Mul(now.y, dy);
      const Vec of_token = hn::Mul(own, hn::Sub(v, y));
      lanes.store(hn::Add(dk, of_token), d.k, t);
      lanes.store(hn::MulAdd(next.y, da, own), d.v, t);
      du = hn::Add(du, of_token), dw = hn::Add(dw, ds);
      dp = hn::MulAdd(past, hn::NegMulAdd(y, b, a), ds);
      da = hn::MulAdd(next.x, da, past);
      db = hn::NegMulAdd(past, y, hn::Mul(next.x, db));
      if (lanes.starts(t)) da = db = dp = zero;
    }
    lanes.to_row(da, d.a), lanes.to_row(db, d.b), lanes.to_row(dp, d.p);
    lanes.to_row(dw, d.w_row), lanes.to_row(du, d.u_row);
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

void wkv_forward(const WkvCall& call, const WkvState& state, float* y) {
  HWY_DYNAMIC_DISPATCH(forward)(call, state, y);
}

void wkv_backward(const WkvCall& call, const WkvState& state, const WkvGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, state, gradients);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
