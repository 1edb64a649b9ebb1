// The selective scan of Mamba with what stands around it, channels across lanes and their states in registers.
//   dt_t = softplus(delta_t + b) or delta_t + b;  x_t = dt_t u_t                         per channel
//   h_t = a_t h_{t-1} + B_t x_t,  a_t = exp(dt_t A)                                     per channel and n of N
//   o_t = C_t . h_t + D u_t;  y_t = o_t silu(z_t)
// Backward, from dy_t, with R_t the gradient that comes to h_t from later tokens, R_T = dh:
//   do_t = dy_t silu(z_t);  dz_t = dy_t o_t silu'(z_t);  dD = sum do_t u_t
//   g_t = R_t + C_t do_t;  R_{t-1} = a_t g_t                                           the whole gradient of h_t
//   dC_t = sum over channels of do_t h_t;  dB_t = sum over channels of g_t x_t
//   w_t = a_t g_t h_{t-1}                                                              the gradient of dt_t A
//   dA = sum w_t dt_t;  dx_t = g_t . B_t;  ddt_t = w_t . A + dx_t u_t;  du_t = dx_t dt_t + D do_t
//   ddelta_t = ddt_t sigmoid(delta_t + b) or ddt_t;  db = sum ddelta_t
// A chunk's a_t and h_{t-1} are recomputed from the state saved at its start, a few n at a time, so that what is kept
// between the two directions stays in the first cache. A document's first token has a_t = 0.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/selective_scan.cc"
#include <hwy/foreach_target.h>

#include <initializer_list>
#include <utility>
#include <vector>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scan-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/selective_scan.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

/// Has n numbers on their way to the second level of cache: in the first, rows a page apart push one another out.
template <class Number>
HWY_INLINE void prefetch(const Number* x, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(Number);
  for (int64_t j = 0; j < n; j += kLine) __builtin_prefetch(x + j, 0, 2);
}

/// What forward and backward share of one row's blocks of channels, one of them selected at a time.
template <class Number>
struct Blocks {
  const ScanCall& call;
  const int64_t most, c_most, N;                  // blocks, tokens
  int64_t b = 0, group = 0, index = 0, slot = 0;  // the row, the block and its place among those of this thread
  int64_t first = 0, count = 0;                   // channels
  int64_t vectors = 0;
  int64_t first_of_all = 0;  // channel of this thread's blocks
  float *dt, *x, *o;         // [vectors, c_most, kLanes]
  float *A, *h;              // [most, vectors, N, kLanes]
  float *B_t, *C_t;          // [c_most, N]
  const bool none[kScanChunk] = {};
  std::vector<TokenRows> asked;  // [B, T, D], read or written for each token
  int64_t loaded = -1;           // the chunk and group of B_t and C_t, if any

  Blocks(Scratch& scratch, const ScanCall& the_call, int64_t blocks, std::initializer_list<void*> results)
      : call(the_call), most(blocks), c_most(call.tokens()), N(call.N), asked({call.u, call.delta}) {
    if (call.z.data) asked.push_back(call.z);
    for (void* result : results) {
      if (result) asked.push_back({result, call.T * call.D, call.D});
    }
    for (float** tokens : {&dt, &x, &o}) *tokens = scratch.take(call.block() * c_most);
    for (float** states : {&A, &h}) *states = scratch.take(most * state_size());
    for (float** inputs : {&B_t, &C_t}) *inputs = scratch.take(c_most * N);
  }

  void select(int64_t row, int64_t block, int64_t place) {
    if (row != b) loaded = -1;
    b = row, index = block, slot = place, group = block / call.blocks_per_group();
    const int64_t within = block % call.blocks_per_group() * call.block();
    first = group * call.channels() + within;
    count = std::min(call.block(), call.channels() - within);
    vectors = (count + kLanes - 1) / kLanes;
    if (slot == 0) first_of_all = first;
  }

  void load_rates() {
    rows_to_lanes_each(call.A + first * N, A);
    float* own = states_of(0, A);
    for (int64_t i = 0; i < vectors * N; ++i, own += kLanes) store_lanes(hn::Mul(load_lanes(own), all(kLog2E)), own);
  }

  int64_t state_size() const { return call.block() * N; }
  int64_t left(int64_t v) const { return count - v * kLanes; }
  int64_t at(int64_t v, int64_t t) const { return (v * c_most + t) * kLanes; }
  /// Of the selected block and one of its vectors, in what is shaped like h.
  float* states_of(int64_t v, float* states) const { return states + slot * state_size() + v * N * kLanes; }
  int64_t chunk_tokens(int64_t chunk) const { return std::min(kScanChunk, call.T - chunk * kScanChunk); }
  float* saved(int64_t chunk) const {
    return call.states + ((b * call.blocks() + index) * call.chunks() + chunk) * state_size();
  }
  const bool* starts(int64_t chunk) const { return call.starts ? call.starts + b * call.T + chunk * kScanChunk : none; }

  void rows_to_lanes_each(const float* rows, float* lanes) const {
    for (int64_t v = 0; v < vectors; ++v) rows_to_lanes(rows + v * kLanes * N, left(v), N, states_of(v, lanes));
  }
  void lanes_to_rows_each(float* lanes, float* rows) const {
    for (int64_t v = 0; v < vectors; ++v) lanes_to_rows(states_of(v, lanes), left(v), N, rows + v * kLanes * N);
  }

  /// Of this block's channels and group.
  const Number* token(const TokenRows& x_t, int64_t t) const { return x_t.at<Number>(b, t) + first; }
  const Number* group_token(const TokenRows& x_t, int64_t t) const { return x_t.at<Number>(b, t) + group * N; }
  Vec parameter(const float* x_d, int64_t v) const {
    return x_d ? load_lanes(x_d + first + v * kLanes, left(v)) : zero();
  }
  Vec channel(const Number* x_t, int64_t v) const { return load_lanes(x_t + v * kLanes, left(v)); }

  /// dt, x, B_t, C_t of a chunk. Asks memory for what is loaded next: this chunk of the next block, or after the last
  /// of `blocks` the first one's next chunk. Tokens of a block lie a page apart, and no hardware foresees them.
  void load(int64_t chunk, int64_t next_chunk, int64_t blocks) {
    const int64_t c = chunk_tokens(chunk);
    const bool same = slot + 1 < blocks;
    const int64_t next_first = same ? first + count : first_of_all;
    for (int64_t i = 0; i < c; ++i) {
      const int64_t t = chunk * kScanChunk + i, ahead = (same ? chunk : next_chunk) * kScanChunk + i;
      if (ahead >= 0 && ahead < call.T) {
        for (const TokenRows& x_t : asked) prefetch(x_t.at<Number>(b, ahead) + next_first, call.block());
      }
      const Number *u_t = token(call.u, t), *delta_t = token(call.delta, t);
      for (int64_t v = 0; v < vectors; ++v) {
        const Vec raw = hn::Add(channel(delta_t, v), parameter(call.bias, v));
        const Vec step = call.softplus ? softplus(raw) : raw;
        store_lanes(step, dt + at(v, i));
        store_lanes(hn::Mul(step, channel(u_t, v)), x + at(v, i));
      }
    }
    if (std::exchange(loaded, chunk * call.G + group) == loaded) return;
    for (int64_t i = 0; i < c; ++i) {
      copy_numbers(group_token(call.B_t, chunk * kScanChunk + i), B_t + i * N);
      copy_numbers(group_token(call.C_t, chunk * kScanChunk + i), C_t + i * N);
    }
  }
  void copy_numbers(const Number* from, float* to) const {
    for (int64_t n = 0; n < N; n += kLanes) store_lanes(load_lanes(from + n, N - n), to + n, N - n);
  }

  ScanReads reads(int64_t chunk, int64_t v) const {
    return {chunk_tokens(chunk), N, dt + at(v, 0), x + at(v, 0), B_t, C_t, starts(chunk), states_of(v, A)};
  }
};

// ---- forward -------------------------------------------------------------------------------------------------------

template <class Number>
class Forward {
 public:
  Forward(Scratch& scratch, const ScanCall& call, int64_t blocks, const ScanResult& result)
      : call_(call), result_(result), block_(scratch, call, blocks, {result.y}) {}

  /// Blocks [from, to) of a row, chunk after chunk.
  void run(int64_t row, int64_t from, int64_t to) {
    const auto each = [&](const auto& f) {
      for (int64_t i = from; i < to; ++i) {
        block_.select(row, i, i - from);
        f((row * call_.D + block_.first) * call_.N);
      }
    };
    each([&](int64_t states) {
      block_.load_rates();
      block_.rows_to_lanes_each(call_.h + states, block_.h);
    });
    for (int64_t chunk = 0; chunk < call_.chunks(); ++chunk) {
      each([&](int64_t) { advance_chunk(chunk, to - from); });
    }
    each([&](int64_t states) { block_.lanes_to_rows_each(block_.h, result_.h + states); });
  }

 private:
  void advance_chunk(int64_t chunk, int64_t blocks) {
    if (call_.states) {
      std::copy_n(block_.states_of(0, block_.h), block_.vectors * kLanes * call_.N, block_.saved(chunk));
    }
    block_.load(chunk, chunk + 1, blocks);
    for (int64_t v = 0; v < block_.vectors; ++v) {
      const ScanReads in = block_.reads(chunk, v);
      each_piece<kForwardStates>(call_.N, [&](int64_t n, auto count) {
        advance<decltype(count)::value>(in, n, block_.states_of(v, block_.h), block_.o + block_.at(v, 0));
      });
    }
    give(chunk);
  }

  void give(int64_t chunk) const {
    for (int64_t i = 0; i < block_.chunk_tokens(chunk); ++i) {
      const int64_t t = chunk * kScanChunk + i;
      Number* y_t = static_cast<Number*>(result_.y) + (block_.b * call_.T + t) * call_.D + block_.first;
      for (int64_t v = 0; v < block_.vectors; ++v) {
        Vec y = load_lanes(block_.o + block_.at(v, i));
        if (call_.skip) {
          y = hn::MulAdd(block_.parameter(call_.skip, v), block_.channel(block_.token(call_.u, t), v), y);
        }
        if (call_.z.data) {
          const Vec z = block_.channel(block_.token(call_.z, t), v);
          y = hn::Mul(y, hn::Mul(z, sigmoid(z)));
        }
        store_lanes(y, y_t + v * kLanes, block_.left(v));
      }
    }
  }

  const ScanCall& call_;
  const ScanResult& result_;
  Blocks<Number> block_;
};

// ---- backward ------------------------------------------------------------------------------------------------------

/// Chunks [begin, end) of the backward pass; what passes from one segment to the one before it lies in the gradients of
/// h and of the parameters.
struct Segment {
  const ScanGradients& d;
  int64_t begin, end;

  float* partial(const ScanCall& call, int64_t b, int64_t block, int64_t chunk) const {
    return d.partials + ((b * call.blocks() + block) * call.segment() + chunk - begin) * call.partial_size();
  }
};

template <class Number>
class Backward {
 public:
  Backward(Scratch& scratch, const ScanCall& call, int64_t blocks, const Segment& segment)
      : call_(call),
        d_(segment.d),
        segment_(segment),
        block_(scratch, call, blocks, {d_.u, d_.delta, d_.z}),
        N_(call.N) {
    block_.asked.push_back(d_.y);
    for (float** tokens : {&d_o_, &dx_, &ddt_}) *tokens = scratch.take(call.block() * call.tokens());
    for (float** sums : {&dB_, &dC_}) *sums = scratch.take(padded(N_ * call.tokens() * kLanes + 3 * kLanes));
    for (float** states : {&R_, &dA_}) *states = scratch.take(blocks * block_.state_size());
    for (float** kept : {&decays_, &before_}) *kept = scratch.take(call.tokens() * kBackwardStates * kLanes);
    for (float** sums : {&dskip_, &dbias_}) *sums = scratch.take(blocks * call.block());
  }

  /// Blocks [from, to) of a row, chunk after chunk from the last.
  void run(int64_t row, int64_t from, int64_t to) {
    const auto each = [&](const auto& f) {
      for (int64_t i = from; i < to; ++i) {
        block_.select(row, i, i - from);
        f(row * call_.D + block_.first);
      }
    };
    const bool last = segment_.end == call_.chunks();
    each([&](int64_t channels) {
      block_.load_rates();
      block_.rows_to_lanes_each((last ? d_.h_after : d_.h) + channels * N_, R_);
      std::fill_n(block_.states_of(0, dA_), block_.state_size(), 0.0f);
      for (float* sums : {dskip_, dbias_}) std::fill_n(per_channel(sums), call_.block(), 0.0f);
      if (last) return;
      block_.rows_to_lanes_each(d_.A_row + channels * N_, dA_);
      if (d_.skip) std::copy_n(d_.skip_row + channels, block_.count, per_channel(dskip_));
      if (d_.bias) std::copy_n(d_.bias_row + channels, block_.count, per_channel(dbias_));
    });
    for (int64_t chunk = segment_.end - 1; chunk >= segment_.begin; --chunk) {
      each([&](int64_t) { reverse_chunk(chunk, to - from); });
    }
    each([&](int64_t channels) {
      block_.lanes_to_rows_each(R_, d_.h + channels * N_);
      block_.lanes_to_rows_each(dA_, d_.A_row + channels * N_);
      if (d_.skip) std::copy_n(per_channel(dskip_), block_.count, d_.skip_row + channels);
      if (d_.bias) std::copy_n(per_channel(dbias_), block_.count, d_.bias_row + channels);
    });
  }

 private:
  float* per_channel(float* sums) const { return sums + block_.slot * call_.block(); }

  void reverse_chunk(int64_t chunk, int64_t blocks) {
    const int64_t c = block_.chunk_tokens(chunk);
    block_.load(chunk, chunk - 1, blocks);
    for (int64_t i = 0; i < c; ++i) {
      const int64_t t = chunk * kScanChunk + i;
      for (int64_t v = 0; v < block_.vectors; ++v) {
        Vec dy = block_.channel(block_.token(d_.y, t), v);
        if (call_.z.data) {
          const Vec z = block_.channel(block_.token(call_.z, t), v);
          dy = hn::Mul(dy, hn::Mul(z, sigmoid(z)));
        }
        store_lanes(dy, d_o_ + block_.at(v, i));
      }
    }
    for (float* sums : {dB_, dC_}) std::fill_n(sums, N_ * c * kLanes, 0.0f);
    for (int64_t v = 0; v < block_.vectors; ++v) {
      const int64_t at = block_.at(v, 0);
      const ScanReads in = block_.reads(chunk, v);
      const ScanWrites out{
          d_o_ + at, block_.o + at, dx_ + at, ddt_ + at, dB_, dC_, block_.states_of(v, R_), block_.states_of(v, dA_),
          decays_,   before_};
      each_piece<kBackwardStates>(N_, [&](int64_t n, auto count) {
        retrace<decltype(count)::value>(in, n, block_.saved(chunk) + v * N_ * kLanes, out);
        reverse<decltype(count)::value>(in, n, out);
      });
    }
    give(chunk);
    float* partial = segment_.partial(call_, block_.b, block_.index, chunk);
    for (const float* sums : {dB_, dC_}) {
      for (int64_t i = 0; i < N_ * c; i += 4) lane_sums(sums + i * kLanes, partial + i);
      partial += N_ * kScanChunk;
    }
  }

  Number* gradient(void* x, int64_t t) const {
    return static_cast<Number*>(x) + (block_.b * call_.T + t) * call_.D + block_.first;
  }

  void give(int64_t chunk) const {
    float *dskip = per_channel(dskip_), *dbias = per_channel(dbias_);
    for (int64_t i = 0; i < block_.chunk_tokens(chunk); ++i) {
      const int64_t t = chunk * kScanChunk + i;
      for (int64_t v = 0; v < block_.vectors; ++v) {
        const int64_t at = block_.at(v, i), lane = v * kLanes, left = block_.left(v);
        const Vec u = block_.channel(block_.token(call_.u, t), v), dt = load_lanes(block_.dt + at);
        const Vec dx = load_lanes(dx_ + at), d_o = load_lanes(d_o_ + at), skip = block_.parameter(call_.skip, v);
        store_lanes(hn::MulAdd(dx, dt, hn::Mul(skip, d_o)), gradient(d_.u, t) + lane, left);
        Vec ddt = hn::MulAdd(load_lanes(ddt_ + at), all(kLn2), hn::Mul(dx, u));
        if (call_.softplus) {
          const Vec raw = hn::Add(block_.channel(block_.token(call_.delta, t), v), block_.parameter(call_.bias, v));
          ddt = hn::Mul(ddt, sigmoid(raw));
        }
        store_lanes(ddt, gradient(d_.delta, t) + lane, left);
        store_lanes(hn::Add(load_lanes(dbias + lane), ddt), dbias + lane);
        store_lanes(hn::MulAdd(d_o, u, load_lanes(dskip + lane)), dskip + lane);
        if (call_.z.data) {
          const Vec z = block_.channel(block_.token(call_.z, t), v), gate = sigmoid(z);
          const Vec slope = hn::Mul(gate, hn::MulAdd(z, hn::Sub(all(1), gate), all(1)));
          const Vec o = hn::MulAdd(skip, u, load_lanes(block_.o + at));
          const Vec dz = hn::Mul(hn::Mul(block_.channel(block_.token(d_.y, t), v), o), slope);
          store_lanes(dz, gradient(d_.z, t) + lane, left);
        }
      }
    }
  }

  const ScanCall& call_;
  const ScanGradients& d_;
  const Segment& segment_;
  Blocks<Number> block_;
  int64_t N_;
  float *d_o_, *dx_, *ddt_;  // [vectors, c, kLanes]
  float *dB_, *dC_;          // [N, c, kLanes]
  float *R_, *dA_;           // [blocks, vectors, N, kLanes]
  float *decays_, *before_;  // [c, kBackwardStates, kLanes]
  float *dskip_, *dbias_;    // [blocks, vectors, kLanes]
};

/// dB and dC of one row, group and chunk from the partial sums of the blocks.
template <class Number>
void sum_blocks(const ScanCall& call, const Segment& segment, int64_t b, int64_t group, int64_t chunk) {
  const int64_t N = call.N, size = N * kScanChunk, c = std::min(kScanChunk, call.T - chunk * kScanChunk);
  Scratch scratch;
  float* sums = scratch.take(padded(2 * size));
  const int64_t per_group = call.blocks_per_group();
  for (int64_t i = 0; i < per_group; ++i) {
    const float* partial = segment.partial(call, b, group * per_group + i, chunk);
    for (int64_t j = 0; j < 2 * size; j += kLanes)
      store_lanes(hn::Add(load_lanes(sums + j), load_lanes(partial + j)), sums + j);
  }
  for (void* to : {segment.d.B_t, segment.d.C_t}) {
    for (int64_t i = 0; i < c; ++i) {
      Number* token = static_cast<Number*>(to) + ((b * call.T + chunk * kScanChunk + i) * call.G + group) * N;
      for (int64_t n = 0; n < N; n += kLanes) {
        float part[kLanes] = {};
        const int64_t count = std::min(kLanes, N - n);
        for (int64_t l = 0; l < count; ++l) part[l] = sums[(n + l) * c + i];
        store_lanes(load_lanes(part), token + n, count);
      }
    }
    sums += size;
  }
}

/// x [n] = the sum of rows [B, n], in order.
void sum_rows(const float* rows, int64_t B, int64_t n, float* x) {
  for (int64_t j = 0; j < n; j += kLanes) {
    Vec sum = zero();
    for (int64_t b = 0; b < B; ++b) sum = hn::Add(sum, load_lanes(rows + b * n + j, n - j));
    store_lanes(sum, x + j, n - j);
  }
}

template <class Kernel, class Other>
void each_block(const ScanCall& call, const Other& other) {
  const int64_t blocks = call.blocks();
  parallel(call.B * blocks, call.B * call.T * call.D * call.N, [&](int64_t begin, int64_t end) {
    const int64_t together = call.chunks() == 1 ? 1 : std::min(end - begin, blocks);
    Scratch scratch;
    Kernel kernel(scratch, call, together, other);
    for (int64_t i = begin; i < end;) {
      const int64_t from = i % blocks, to = std::min({blocks, from + end - i, from + together});
      kernel.run(i / blocks, from, to);
      i += to - from;
    }
  });
}

void forward(const ScanCall& call, const ScanResult& result) {
  call.bfloat16 ? each_block<Forward<BFloat16>>(call, result) : each_block<Forward<float>>(call, result);
}

template <class Number>
void backward_of(const ScanCall& call, const ScanGradients& d) {
  for (int64_t end = call.chunks(); end > 0; end -= call.segment()) {
    const Segment segment{d, std::max<int64_t>(0, end - call.segment()), end};
    each_block<Backward<Number>>(call, segment);
    const int64_t chunks = end - segment.begin, tasks = call.B * call.G * chunks;
    parallel(tasks, tasks * call.blocks_per_group() * call.partial_size(), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t task = i / chunks;
        sum_blocks<Number>(call, segment, task / call.G, task % call.G, segment.begin + i % chunks);
      }
    });
  }
  sum_rows(d.A_row, call.B, call.D * call.N, d.A);
  if (d.skip) sum_rows(d.skip_row, call.B, call.D, d.skip);
  if (d.bias) sum_rows(d.bias_row, call.B, call.D, d.bias);
}

void backward(const ScanCall& call, const ScanGradients& d) {
  call.bfloat16 ? backward_of<BFloat16>(call, d) : backward_of<float>(call, d);
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

namespace cpu {

void selective_scan_forward(const ScanCall& call, const ScanResult& result) {
  HWY_DYNAMIC_DISPATCH(forward)(call, result);
}

void selective_scan_backward(const ScanCall& call, const ScanGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace cpu
}  // namespace lineal::kernels
#endif
