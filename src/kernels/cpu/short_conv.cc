// The short depthwise convolution with its activation, channels across lanes, in the layout [B, T, D] of its input.
//   p_t = bias + sum_k w_k x_{t-k},  k = 0..r_t;  y_t = p_t or silu(p_t)                 per channel
// where w_k is tap J-1-k, x_{-1}, x_{-2}, ... are the window, last token first, and r_t <= J-1 how many tokens t sees
// behind it in its document. Backward, from dy_t and the gradient dV of the window after the call:
//   g_t = dy_t or dy_t silu'(p_t)
//   dx_s = sum_k w_k g_{s+k} where k <= r_{s+k}, and dV_s where the last token sees s; of the window likewise
//   dw_k = sum_t g_t x_{t-k} where k <= r_t;  dbias = sum_t g_t
// A task computes p of the J-1 tokens behind its own once more instead of waiting for another's.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/short_conv.cc"
#include <hwy/foreach_target.h>

#include <vector>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/short_conv.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

constexpr int64_t kVectors = ConvCall::kChannels / kLanes;

HWY_INLINE Vec zero() { return hn::Zero(kWide); }

/// What forward and backward share of one task: tokens [first, last) of one row's block of channels, and as many before
/// and behind them as taps reach.
template <class Number>
class Task {
 public:
  Task(Scratch& scratch, const ConvCall& call)
      : call_(call), reach_(call.J - 1), rows_(call.chunk() + 2 * reach_), seen_(rows_) {
    weight_ = scratch.take(call.blocks() * ConvCall::kChannels * call.J);
    x_ = scratch.take(rows_ * ConvCall::kChannels);
    for (int64_t v = 0; v * kLanes < call.D; ++v) {
      rows_to_lanes(call.weight + v * kLanes * call.J, call.D - v * kLanes, call.J, weight_ + v * kLanes * call.J);
    }
  }

  /// Loads x from `reach` tokens before the task's own to `behind` tokens behind them; zeros beyond the last.
  void begin(int64_t task, int64_t behind) {
    const int64_t piece = task / call_.blocks();
    channel_ = task % call_.blocks() * ConvCall::kChannels;
    b_ = piece / call_.chunks();
    first_ = piece % call_.chunks() * call_.chunk();
    last_ = std::min(call_.T, first_ + call_.chunk());
    vectors_ = (std::min(ConvCall::kChannels, call_.D - channel_) + kLanes - 1) / kLanes;
    for (int64_t t = first_ - reach_; t < std::min(call_.T, last_ + behind); ++t) {
      const float* window = t < 0 ? call_.window + (b_ * reach_ + reach_ + t) * call_.D + channel_ : nullptr;
      const Number* token = t < 0 ? nullptr : call_.x.at<Number>(b_, t) + channel_;
      for (int64_t v = 0; v < vectors_; ++v) {
        const int64_t at = v * kLanes;
        store_lanes(window ? load_lanes(window + at, left(v)) : load_lanes(token + at, left(v)), x(v, t));
      }
    }
    see(std::min(call_.T, last_ + behind));
  }

  /// p_t of tokens [from, to) of a vector, given to f(t, p_t).
  template <class F>
  void convolve(int64_t v, int64_t from, int64_t to, const F& f) const {
    constexpr int kAtOnce = 4;
    const Vec bias = load_lanes(call_.bias + channel_ + v * kLanes, left(v));
    int64_t t = from;
    for (; whole_ && t + kAtOnce <= to; t += kAtOnce) {
      Vec p[kAtOnce] = {bias, bias, bias, bias};
      const float* oldest = x(v, t - reach_);
      for (int64_t j = 0; j < call_.J; ++j) {
        const Vec w = tap(v, j);
        for (int i = 0; i < kAtOnce; ++i) p[i] = hn::MulAdd(w, load_lanes(oldest + (i + j) * kLanes), p[i]);
      }
      for (int i = 0; i < kAtOnce; ++i) f(t + i, p[i]);
    }
    for (; t < to; ++t) {
      Vec p = bias;
      for (int64_t j = reach_ - seen(t); j < call_.J; ++j) {
        p = hn::MulAdd(tap(v, j), load_lanes(x(v, t - reach_ + j)), p);
      }
      f(t, p);
    }
  }

  const ConvCall& call() const { return call_; }
  int64_t row() const { return b_; }
  int64_t first() const { return first_; }
  int64_t last() const { return last_; }
  int64_t channel() const { return channel_; }
  int64_t vectors() const { return vectors_; }
  int64_t left(int64_t v) const { return call_.D - channel_ - v * kLanes; }
  int64_t reach() const { return reach_; }
  int64_t rows() const { return rows_; }
  /// No document starts among the tokens loaded.
  bool whole() const { return whole_; }
  /// r_t.
  int64_t seen(int64_t t) const { return seen_[static_cast<size_t>(t - first_ + reach_)]; }
  Vec tap(int64_t v, int64_t j) const { return load_lanes(weight_ + ((channel_ + v * kLanes) * call_.J) + j * kLanes); }
  /// Where token t of a vector lies in what is shaped like x: [vectors, rows, kLanes].
  int64_t at(int64_t v, int64_t t) const { return (v * rows_ + t - first_ + reach_) * kLanes; }
  float* x(int64_t v, int64_t t) const { return x_ + at(v, t); }

 private:
  void see(int64_t end) {
    int64_t seen = reach_;
    whole_ = true;
    for (int64_t t = first_ - reach_; t < end; ++t) {
      const bool start = t >= 0 && call_.starts && call_.starts[b_ * call_.T + t];
      whole_ = whole_ && !start;
      seen = start ? 0 : std::min(reach_, seen + 1);
      seen_[static_cast<size_t>(t - first_ + reach_)] = seen;
    }
  }

  const ConvCall& call_;
  int64_t reach_, rows_;
  int64_t b_ = 0, first_ = 0, last_ = 0, channel_ = 0, vectors_ = 0;
  bool whole_ = true;
  std::vector<int64_t> seen_;  // [rows]
  float* weight_;              // [blocks, vectors, J, kLanes]
  float* x_;                   // [vectors, rows, kLanes]
};

// ---- forward -------------------------------------------------------------------------------------------------------

template <class Number>
class Forward {
 public:
  Forward(Scratch& scratch, const ConvCall& call, const ConvResult& result) : result_(result), task_(scratch, call) {}

  void run(int64_t index) {
    task_.begin(index, 0);
    const ConvCall& call = task_.call();
    for (int64_t v = 0; v < task_.vectors(); ++v) {
      Number* y = static_cast<Number*>(result_.y) + task_.row() * call.T * call.D + task_.channel() + v * kLanes;
      task_.convolve(v, task_.first(), task_.last(), [&](int64_t t, Vec p) {
        store_lanes(call.silu ? hn::Mul(p, sigmoid(p)) : p, y + t * call.D, task_.left(v));
      });
      if (task_.last() == call.T) keep_window(v);
    }
  }

 private:
  void keep_window(int64_t v) const {
    const ConvCall& call = task_.call();
    for (int64_t k = 0; k < task_.reach(); ++k) {
      const int64_t t = call.T - 1 - k, place = task_.row() * task_.reach() + task_.reach() - 1 - k;
      store_lanes(k <= task_.seen(call.T - 1) ? load_lanes(task_.x(v, t)) : zero(),
                  result_.window + place * call.D + task_.channel() + v * kLanes, task_.left(v));
    }
  }

  const ConvResult& result_;
  Task<Number> task_;
};

// ---- backward ------------------------------------------------------------------------------------------------------

template <class Number>
class Backward {
 public:
  Backward(Scratch& scratch, const ConvCall& call, const ConvGradients& gradients)
      : d_(gradients), task_(scratch, call) {
    g_ = scratch.take(task_.rows() * ConvCall::kChannels);
  }

  void run(int64_t index) {
    task_.begin(index, task_.reach());
    const ConvCall& call = task_.call();
    float* partial = d_.partials + index * call.partial_size();
    for (int64_t v = 0; v < task_.vectors(); ++v, partial += (call.J + 1) * kLanes) {
      slopes(v);
      const bool begins = task_.first() == 0;
      for (int64_t s = begins ? -task_.reach() : task_.first(); s < task_.last(); ++s) give(v, s);
      sum_taps(v, partial);
    }
  }

 private:
  /// g of the task's tokens and of those behind them; zeros around.
  void slopes(int64_t v) {
    const ConvCall& call = task_.call();
    const int64_t end = std::min(call.T, task_.last() + task_.reach());
    float* g = g_ + v * task_.rows() * kLanes;
    std::fill(g, g_ + task_.at(v, task_.first()), 0.0f);
    std::fill(g_ + task_.at(v, end), g + task_.rows() * kLanes, 0.0f);
    const auto gradient = [&](int64_t t) {
      return load_lanes(d_.y.at<Number>(task_.row(), t) + task_.channel() + v * kLanes, task_.left(v));
    };
    if (!call.silu) {
      for (int64_t t = task_.first(); t < end; ++t) store_lanes(gradient(t), g_ + task_.at(v, t));
      return;
    }
    task_.convolve(v, task_.first(), end, [&](int64_t t, Vec p) {
      const Vec gate = sigmoid(p), one = hn::Set(kWide, 1.0f);
      const Vec slope = hn::Mul(gate, hn::MulAdd(p, hn::Sub(one, gate), one));
      store_lanes(hn::Mul(gradient(t), slope), g_ + task_.at(v, t));
    });
  }

  /// dx_s, or for s < 0 that of the window.
  void give(int64_t v, int64_t s) const {
    const ConvCall& call = task_.call();
    const int64_t reach = task_.reach(), lane = task_.channel() + v * kLanes, behind = call.T - 1 - s;
    const float* g = g_ + task_.at(v, s);
    Vec dx = zero();
    if (behind < reach && behind <= task_.seen(call.T - 1)) {
      dx = load_lanes(d_.window_after + (task_.row() * reach + reach - 1 - behind) * call.D + lane, task_.left(v));
    }
    if (task_.whole()) {
      for (int64_t k = 0; k <= reach; ++k) dx = hn::MulAdd(task_.tap(v, reach - k), load_lanes(g + k * kLanes), dx);
    } else {
      for (int64_t k = std::max<int64_t>(0, -s); k <= std::min(reach, behind); ++k) {
        if (k <= task_.seen(s + k)) dx = hn::MulAdd(task_.tap(v, reach - k), load_lanes(g + k * kLanes), dx);
      }
    }
    if (s < 0) {
      store_lanes(dx, d_.window + (task_.row() * reach + reach + s) * call.D + lane, task_.left(v));
    } else {
      store_lanes(dx, static_cast<Number*>(d_.x) + (task_.row() * call.T + s) * call.D + lane, task_.left(v));
    }
  }

  /// The task's part of dw, tap after tap, and of dbias: sums [J + 1, kLanes].
  void sum_taps(int64_t v, float* sums) const {
    const ConvCall& call = task_.call();
    each_piece<4>(call.J, [&](int64_t j, auto count) {
      constexpr int kTaps = decltype(count)::value;
      Vec sum[kTaps];
      std::fill_n(sum, kTaps, zero());
      for (int64_t t = task_.first(); t < task_.last(); ++t) {
        const Vec g = load_lanes(g_ + task_.at(v, t));
        const float* x = task_.x(v, t - task_.reach() + j);
        const int64_t unseen = task_.reach() - task_.seen(t) - j;  // of these taps
        for (int i = 0; i < kTaps; ++i) {
          if (HWY_LIKELY(i >= unseen)) sum[i] = hn::MulAdd(g, load_lanes(x + i * kLanes), sum[i]);
        }
      }
      for (int i = 0; i < kTaps; ++i) store_lanes(sum[i], sums + (j + i) * kLanes);
    });
    Vec sum = zero();
    for (int64_t t = task_.first(); t < task_.last(); ++t) sum = hn::Add(sum, load_lanes(g_ + task_.at(v, t)));
    store_lanes(sum, sums + call.J * kLanes);
  }

  const ConvGradients& d_;
  Task<Number> task_;
  float* g_;  // [vectors, rows, kLanes]
};

/// dw and dbias of a block of channels from the partial sums of the tasks.
void sum_tasks(const ConvCall& call, const ConvGradients& d, int64_t block) {
  Scratch scratch;
  float* sums = scratch.take(call.partial_size());
  for (int64_t task = block; task < call.tasks(); task += call.blocks()) {
    const float* partial = d.partials + task * call.partial_size();
    const int64_t channels = padded(std::min(ConvCall::kChannels, call.D - block * ConvCall::kChannels));
    for (int64_t i = 0; i < channels * (call.J + 1); i += kLanes) {
      store_lanes(hn::Add(load_lanes(sums + i), load_lanes(partial + i)), sums + i);
    }
  }
  for (int64_t v = 0; v < kVectors; ++v, sums += (call.J + 1) * kLanes) {
    const int64_t channel = block * ConvCall::kChannels + v * kLanes;
    if (channel >= call.D) return;
    lanes_to_rows(sums, call.D - channel, call.J, d.weight + channel * call.J);
    store_lanes(load_lanes(sums + call.J * kLanes), d.bias + channel, call.D - channel);
  }
}

template <class Kernel, class Other>
void each_task(const ConvCall& call, const Other& other) {
  parallel(call.tasks(), call.B * call.T * call.D * call.J, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Kernel kernel(scratch, call, other);
    for (int64_t i = begin; i < end; ++i) kernel.run(i);
  });
}

void forward(const ConvCall& call, const ConvResult& result) {
  call.bfloat16 ? each_task<Forward<BFloat16>>(call, result) : each_task<Forward<float>>(call, result);
}

void backward(const ConvCall& call, const ConvGradients& d) {
  call.bfloat16 ? each_task<Backward<BFloat16>>(call, d) : each_task<Backward<float>>(call, d);
  parallel(call.blocks(), call.B * call.T * call.D * call.J, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum_tasks(call, d, i);
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

void short_conv_forward(const ConvCall& call, const ConvResult& result) { HWY_DYNAMIC_DISPATCH(forward)(call, result); }

void short_conv_backward(const ConvCall& call, const ConvGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
