// Attention over quantised keys: blocks of queries against the tokens they see one by one and the sums of older ones.
//
// A block that sees the keys k [n, K] one by one, and n_m older tokens of code c_m by the mean of their values:
//   s = q k^T + shift(p r^T)                       shift: row i's column j is distance i - j, where it has a key
//   e = q c^T + log n_m
//   P = exp(s - L),  E = exp(e - L)                L: the logarithm of the sum of both in each row
//   o = P v + E mean
// Backward, from do, with d = rowsum(do . o):
//   ds = P . (do v^T - d),  de = E . (do mean^T - d)
//   dq = ds k + de c,  dp = shift^T(ds) r
//   dk = ds^T q,  dv = P^T do,  dr = shift^T(ds)^T p,  dmean = E^T do         sums over the blocks that see them
// A mean is over n_m values, so that each of its tokens has dmean_m / n_m: in the order of time reversed, G_m = sum of
// dmean_m / n_m over later blocks of the document, and dv_j = G_{m_j} of a token when it joins the sums. The means
// before the call have n_m G_m for the n_m of then.
//
// Only sums pass between blocks, and they need no scores: one walk over the tokens leaves them at the start of every
// run of blocks, and runs are independent. What runs have in common, gradients of tokens before their own and G, is
// added at the end in the order of runs: results do not depend on the number of threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vq_attention.cc"
#include <hwy/foreach_target.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/cpu/vq_attention.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

constexpr int64_t kQueries = 32;  // whose scores are in cache at once
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// to [n, padded(N)] = rows of N that are `row` apart.
void load_rows(const float* from, int64_t row, int64_t n, int64_t N, float* to) {
  for (int64_t i = 0; i < n; ++i) copy_padded(from + i * row, N, padded(N), to + i * padded(N));
}

/// Floats of n rows of N as load_rows has them, with what `transpose` reads beyond.
int64_t rows_size(int64_t n, int64_t N) { return padded(n) * padded(N); }

// ---- sums ----------------------------------------------------------------------------------------------------------

/// The tokens of one row and head that are summed, by code.
class Sums {
 public:
  Sums(Scratch& scratch, const VqCall& call) : call_(call), Vp_(padded(call.V)) {
    mean = scratch.take(rows_size(call.M, call.V));
    added_ = scratch.take(call.M * Vp_);
    count.resize(static_cast<size_t>(call.M));
    more_.resize(static_cast<size_t>(call.M));
  }

  void clear() {
    std::fill(count.begin(), count.end(), 0);
    std::fill_n(mean, call_.M * Vp_, 0.0f);
  }
  void load(const int64_t* counts, const float* means) {
    std::copy_n(counts, call_.M, count.begin());
    load_rows(means, call_.V, call_.M, call_.V, mean);
  }
  void store(int64_t* counts, float* means) const {
    std::copy(count.begin(), count.end(), counts);
    for (int64_t m = 0; m < call_.M; ++m) copy(mean + m * Vp_, call_.V, means + m * call_.V);
  }

  /// What leaves the recent tokens after a block.
  void add(int64_t b, int64_t h, const VqBlock& block) {
    for (int64_t j = block.recent; j < block.leave; ++j) {
      const int64_t at = (b * call_.E + j) * call_.H + h, m = call_.code[at];
      if (more_[static_cast<size_t>(m)]++ == 0) touched_.push_back(m);
      add_scaled(1, call_.v + at * call_.V, call_.V, added_ + m * Vp_);
    }
    for (const int64_t m : touched_) {
      int64_t &n = count[static_cast<size_t>(m)], &more = more_[static_cast<size_t>(m)];
      const auto total = static_cast<float>(n + more);
      scale(static_cast<float>(n) / total, Vp_, mean + m * Vp_);
      add_scaled(1 / total, added_ + m * Vp_, Vp_, mean + m * Vp_);
      std::fill_n(added_ + m * Vp_, Vp_, 0.0f);
      n += more;
      more = 0;
    }
    touched_.clear();
  }

  std::vector<int64_t> count;
  float* mean;  // [M, Vp]

 private:
  const VqCall& call_;
  int64_t Vp_;
  float* added_;
  std::vector<int64_t> more_, touched_;
};

/// The sums before every run, and after the call.
void walk(const VqCall& call, const VqResult& result) {
  const int64_t H = call.H, M = call.M, V = call.V;
  parallel(call.B * H, call.B * call.T * H * V / 16, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Sums sums(scratch, call);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / H, h = item % H;
      sums.load(call.count + item * M, call.mean + item * M * V);
      for (size_t n = 0; n < call.runs.size(); ++n) {
        const VqRun& run = call.runs[n];
        if (run.b != b) continue;
        const int64_t at = (static_cast<int64_t>(n) * H + h) * M;
        sums.store(call.run_count + at, call.run_mean + at * V);
        for (int64_t i = run.first; i < run.end; ++i) {
          const VqBlock& block = call.blocks[static_cast<size_t>(i)];
          if (block.restart) sums.clear();
          sums.add(b, h, block);
        }
      }
      sums.store(result.count + item * M, result.mean + item * M * V);
    }
  });
}

// ---- scores --------------------------------------------------------------------------------------------------------

/// What the blocks of one run and head share, and the scores of a few of their queries.
class Scores {
 public:
  Scores(Scratch& scratch, const VqCall& call)
      : call(call),
        K(call.K),
        V(call.V),
        M(call.aggregate ? call.M : 0),
        R(call.R),
        Kp(padded(K)),
        Vp(padded(V)),
        Mp(padded(M)),
        Rp(padded(R) + kAlign) {
    int64_t most = 0;
    for (const VqBlock& block : call.blocks) most = std::max(most, block.first + block.count - block.recent);
    Np = padded(most);
    row = Np + Mp;
    k_rows = scratch.take(rows_size(most, K));
    k_columns = scratch.take(Kp * Np);
    v_rows = scratch.take(rows_size(most, V));
    c_rows = scratch.take(rows_size(M, K));
    c_columns = scratch.take(Kp * Mp);
    r_rows = scratch.take(rows_size(R, K));
    r_columns = scratch.take(Kp * Rp);
    logs = scratch.take(Mp);
    s = scratch.take(kQueries * row);
    by_distance = scratch.take(kQueries * Rp);
  }

  void begin_head(int64_t the_h) {
    h = the_h;
    if (M > 0) {
      load_rows(call.codebook + h * M * K, K, M, K, c_rows);
      transpose(M, K, c_rows, Kp, c_columns, Mp);
    }
    for (int64_t d = 0; d < R; ++d) {  // the largest distance first, as keys are
      copy_padded(call.r + ((R - 1 - d) * call.H + h) * K, K, Kp, r_rows + d * Kp);
    }
    transpose(R, K, r_rows, Kp, r_columns, Rp);
  }

  void begin_block(int64_t the_b, const VqBlock& the_block, const std::vector<int64_t>& counts) {
    b = the_b, block = &the_block;
    n = block->first + block->count - block->recent;
    const int64_t at = (b * call.E + block->recent) * call.H + h;
    load_rows(call.k + at * K, call.H * K, n, K, k_rows);
    transpose(n, K, k_rows, Kp, k_columns, Np);
    load_rows(call.v + at * V, call.H * V, n, V, v_rows);
    codes = false;
    for (int64_t m = 0; m < Mp; ++m) {
      const int64_t count = m < M ? counts[static_cast<size_t>(m)] : 0;
      logs[m] = count > 0 ? std::log(static_cast<float>(count)) : -kInfinity;
      codes |= count > 0;
    }
  }

  /// Scores of queries [from, from + c) of the block; minus infinity where a query does not see.
  void of(int64_t from, int64_t c) {
    first = block->first + from;
    seen = first + c - block->recent;
    nearest = std::max<int64_t>(0, R - seen);  // the column of by_distance that holds the largest distance in use
    product<Store::set>(c, seen, K, {call.q + query(0) * K, call.H * K}, k_columns, Np, s, row);
    product<Store::set>(c, R - nearest, K, {call.p + query(0) * K, call.H * K}, r_columns + nearest, Rp, by_distance,
                        Rp);
    if (codes) product<Store::set>(c, M, K, {call.q + query(0) * K, call.H * K}, c_columns, Mp, s + Np, row);
    for (int64_t i = 0; i < c; ++i) {
      float* of_i = s + i * row;
      const int64_t end = own(i) + 1, near = near_from(i);
      add_scaled(1, by_distance + i * Rp + column(i, near), end - near, of_i + near);
      if (!call.aggregate) std::fill(of_i, of_i + near, -kInfinity);
      std::fill(of_i + end, of_i + padded(seen), -kInfinity);
      for (int64_t m = 0; codes && m < Mp; m += kLanes)
        store(hn::Add(load(of_i + Np + m), load(logs + m)), of_i + Np + m);
    }
  }

  /// Scores x of row i become f(x), all of them in vectors.
  template <class F>
  void each(int64_t i, const F& f) {
    float* of_i = s + i * row;
    for (int64_t j = 0; j < padded(seen); j += kLanes) f(of_i + j);
    for (int64_t m = 0; codes && m < Mp; m += kLanes) f(of_i + Np + m);
  }

  /// Query i of those at hand in [B, T, H].
  int64_t query(int64_t i) const { return (b * call.T + first + i - (call.E - call.T)) * call.H + h; }
  /// Columns of the scores: of the query itself, and the first whose distance counts.
  int64_t own(int64_t i) const { return first + i - block->recent; }
  int64_t near_from(int64_t i) const { return std::max<int64_t>(0, own(i) - (R - 1)); }
  /// Where by_distance has what goes to a column of the scores.
  int64_t column(int64_t i, int64_t j) const { return R - 1 - own(i) + j - nearest; }

  const VqCall& call;
  int64_t K, V, M, R, Kp, Vp, Mp, Rp, Np, row;
  int64_t b = 0, h = 0, n = 0, first = 0, seen = 0, nearest = 0;
  bool codes = false;  // any is summed
  const VqBlock* block = nullptr;
  float *k_rows, *k_columns, *v_rows;  // [n, Kp], [K, Np], [n, Vp]
  float *c_rows, *c_columns;           // [M, Kp], [K, Mp]
  float *r_rows, *r_columns;           // [R, Kp], [K, Rp]
  float* logs;                         // [Mp]
  float* s;                            // [kQueries, Np + Mp]
  float* by_distance;                  // [kQueries, Rp]
};

/// Calls work(scratch, n, h) for every run and head.
template <class F>
void each_run(const VqCall& call, const F& work) {
  const auto runs = static_cast<int64_t>(call.runs.size());
  const int64_t operations = call.B * call.T * call.H * (call.R + call.M) * (call.K + call.V) / 16;
  parallel(runs * call.H, operations, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) work(item % runs, item / runs);
  });
}

void forward(const VqCall& call, const VqResult& result) {
  if (call.aggregate) walk(call, result);
  each_run(call, [&](int64_t n, int64_t h) {
    const VqRun& run = call.runs[static_cast<size_t>(n)];
    Scratch scratch;
    Scores scores(scratch, call);
    Sums sums(scratch, call);
    const int64_t V = call.V, Vp = scores.Vp;
    float* o = scratch.take(kQueries * Vp);
    float sum[kQueries];
    if (call.aggregate) {
      const int64_t at = (n * call.H + h) * call.M;
      sums.load(call.run_count + at, call.run_mean + at * V);
    }
    scores.begin_head(h);
    for (int64_t i = run.first; i < run.end; ++i) {
      const VqBlock& block = call.blocks[static_cast<size_t>(i)];
      if (block.restart) sums.clear();
      scores.begin_block(run.b, block, sums.count);
      for (int64_t from = 0; from < block.count; from += kQueries) {
        const int64_t c = std::min(kQueries, block.count - from);
        scores.of(from, c);
        for (int64_t j = 0; j < c; ++j) {
          Vec most = all(-kInfinity), total_of = hn::Zero(kWide);
          scores.each(j, [&](float* x) { most = hn::Max(most, load(x)); });
          const float peak = hn::GetLane(hn::MaxOfLanes(kWide, most));
          scores.each(j, [&](float* x) {
            const Vec weight = exp(hn::Sub(load(x), all(peak)));
            total_of = hn::Add(total_of, weight);
            store(weight, x);
          });
          sum[j] = total(total_of);
          if (result.log_sum) result.log_sum[scores.query(j)] = peak + std::log(sum[j]);
        }
        product<Store::set>(c, V, scores.seen, {scores.s, scores.row}, scores.v_rows, Vp, o, Vp);
        if (scores.codes) {
          product<Store::add>(c, V, scores.M, {scores.s + scores.Np, scores.row}, sums.mean, Vp, o, Vp);
        }
        for (int64_t j = 0; j < c; ++j) {
          scale(1 / sum[j], Vp, o + j * Vp);
          copy(o + j * Vp, V, result.o + scores.query(j) * V);
        }
      }
      if (call.aggregate) sums.add(run.b, h, block);
    }
  });
}

// ---- backward ------------------------------------------------------------------------------------------------------

class Backward {
 public:
  Backward(Scratch& scratch, const VqCall& call, const VqGradients& d, int64_t n, int64_t h)
      : call_(call),
        d_(d),
        run_(call.runs[static_cast<size_t>(n)]),
        n_(n),
        h_(h),
        scores_(scratch, call),
        sums_(scratch, call),
        K_(call.K),
        V_(call.V),
        M_(scores_.M),
        Kp_(scores_.Kp),
        Vp_(scores_.Vp) {
    const int64_t blocks = run_.end - run_.first;
    means_ = scratch.take(blocks * M_ * Vp_ + kAlign * Vp_);
    mean_columns_ = scratch.take(Vp_ * scores_.Mp);
    v_columns_ = scratch.take(Vp_ * scores_.Np);
    ds_ = scratch.take(kQueries * scores_.row);
    shifted_ = scratch.take(kQueries * scores_.Rp);
    q_ = scratch.take(kQueries * Kp_);
    p_ = scratch.take(kQueries * Kp_);
    do_ = scratch.take(kQueries * Vp_);
    dq_ = scratch.take(kQueries * Kp_);
    dk_ = scratch.take(run_.places * Kp_);
    dv_ = scratch.take(run_.places * Vp_);
    dr_ = scratch.take(scores_.R * Kp_);
    dmean_ = scratch.take(M_ * Vp_);
    later_ = scratch.take(M_ * Vp_);
  }

  void run() {
    scores_.begin_head(h_);
    remember();
    for (int64_t i = run_.end; i-- > run_.first;) {
      const VqBlock& block = call_.blocks[static_cast<size_t>(i)];
      const auto place = static_cast<size_t>(i - run_.first);
      for (int64_t j = block.recent; j < block.leave; ++j) {
        const int64_t m = call_.code[(run_.b * call_.E + j) * call_.H + h_];
        add_scaled(1, later_ + m * Vp_, Vp_, dv_ + (j - run_.lowest) * Vp_);
      }
      one_block(block, counts_[place], means_ + static_cast<int64_t>(place) * M_ * Vp_);
      for (int64_t m = 0; m < M_; ++m) {
        const int64_t count = counts_[place][static_cast<size_t>(m)];
        if (count > 0) add_scaled(1 / static_cast<float>(count), dmean_ + m * Vp_, Vp_, later_ + m * Vp_);
      }
      if (block.restart) std::fill_n(later_, M_ * Vp_, 0.0f);
    }
    finish();
  }

 private:
  /// The sums before every block.
  void remember() {
    if (M_ == 0) {
      counts_.resize(static_cast<size_t>(run_.end - run_.first));
      return;
    }
    const int64_t at = (n_ * call_.H + h_) * M_;
    sums_.load(call_.run_count + at, call_.run_mean + at * V_);
    for (int64_t i = run_.first; i < run_.end; ++i) {
      const VqBlock& block = call_.blocks[static_cast<size_t>(i)];
      if (block.restart) sums_.clear();
      counts_.push_back(sums_.count);
      std::copy_n(sums_.mean, M_ * Vp_, means_ + (i - run_.first) * M_ * Vp_);
      sums_.add(run_.b, h_, block);
    }
  }

  void one_block(const VqBlock& block, const std::vector<int64_t>& counts, const float* means) {
    scores_.begin_block(run_.b, block, counts);
    const int64_t row = scores_.row, Np = scores_.Np, Mp = scores_.Mp, Rp = scores_.Rp, H = call_.H;
    transpose(scores_.n, V_, scores_.v_rows, Vp_, v_columns_, Np);
    if (scores_.codes) transpose(M_, V_, means, Vp_, mean_columns_, Mp);
    std::fill_n(dmean_, M_ * Vp_, 0.0f);
    float *dk = dk_ + (block.recent - run_.lowest) * Kp_, *dv = dv_ + (block.recent - run_.lowest) * Vp_;
    for (int64_t from = 0; from < block.count; from += kQueries) {
      const int64_t c = std::min(kQueries, block.count - from);
      scores_.of(from, c);
      const int64_t at = scores_.query(0), seen = scores_.seen, near = scores_.nearest, distances = scores_.R - near;
      load_rows(call_.q + at * K_, H * K_, c, K_, q_);
      load_rows(call_.p + at * K_, H * K_, c, K_, p_);
      load_rows(d_.d_o + at * V_, H * V_, c, V_, do_);
      product<Store::set>(c, seen, V_, {do_, Vp_}, v_columns_, Np, ds_, row);
      if (scores_.codes) product<Store::set>(c, M_, V_, {do_, Vp_}, mean_columns_, Mp, ds_ + Np, row);
      for (int64_t i = 0; i < c; ++i) {
        const Vec log_sum = all(d_.log_sum[scores_.query(i)]);
        const Vec d = all(dot(d_.o + scores_.query(i) * V_, do_ + i * Vp_, V_));
        const int64_t to_ds = ds_ - scores_.s;
        scores_.each(i, [&](float* x) {
          const Vec weight = exp(hn::Sub(load(x), log_sum));
          store(weight, x);
          store(hn::Mul(weight, hn::Sub(load(x + to_ds), d)), x + to_ds);
        });
        const int64_t end = scores_.own(i) + 1, begin = scores_.near_from(i), column = scores_.column(i, begin);
        float* shifted = shifted_ + i * Rp;
        std::fill(shifted, shifted + padded(distances), 0.0f);
        copy(ds_ + i * row + begin, end - begin, shifted + column);
      }
      product<Store::set>(c, K_, seen, {ds_, row}, scores_.k_rows, Kp_, dq_, Kp_);
      if (scores_.codes) product<Store::add>(c, K_, M_, {ds_ + Np, row}, scores_.c_rows, Kp_, dq_, Kp_);
      for (int64_t i = 0; i < c; ++i) copy(dq_ + i * Kp_, K_, d_.q + scores_.query(i) * K_);
      product<Store::set>(c, K_, distances, {shifted_, Rp}, scores_.r_rows + near * Kp_, Kp_, dq_, Kp_);
      for (int64_t i = 0; i < c; ++i) copy(dq_ + i * Kp_, K_, d_.p + scores_.query(i) * K_);
      product<Store::add>(seen, K_, c, {ds_, 1, row}, q_, Kp_, dk, Kp_);
      product<Store::add>(seen, V_, c, {scores_.s, 1, row}, do_, Vp_, dv, Vp_);
      product<Store::add>(distances, K_, c, {shifted_, 1, Rp}, p_, Kp_, dr_ + near * Kp_, Kp_);
      if (scores_.codes) product<Store::add>(M_, V_, c, {scores_.s + Np, 1, row}, do_, Vp_, dmean_, Vp_);
    }
  }

  void finish() {
    const int64_t H = call_.H;
    for (int64_t i = 0; i < run_.places; ++i) {
      const bool own = i >= run_.overlap;
      const int64_t at = own ? (run_.b * call_.E + run_.lowest + i) * H + h_ : (run_.before + i) * H + h_;
      copy(dk_ + i * Kp_, K_, (own ? d_.k : d_.overlap_k) + at * K_);
      copy(dv_ + i * Vp_, V_, (own ? d_.v : d_.overlap_v) + at * V_);
    }
    const int64_t at = n_ * H + h_;
    for (int64_t i = 0; i < scores_.R; ++i) copy(dr_ + i * Kp_, K_, d_.r + (at * scores_.R + i) * K_);
    for (int64_t m = 0; m < M_; ++m) copy(later_ + m * Vp_, V_, d_.run_sum + (at * M_ + m) * V_);
  }

  const VqCall& call_;
  const VqGradients& d_;
  const VqRun& run_;
  int64_t n_, h_;
  Scores scores_;
  Sums sums_;
  int64_t K_, V_, M_, Kp_, Vp_;
  std::vector<std::vector<int64_t>> counts_;  // before each block
  float* means_;                              // [blocks][M, Vp]
  float *mean_columns_, *v_columns_;          // [V, Mp], [V, Np]
  float* ds_;                                 // as the scores
  float* shifted_;                            // [kQueries, Rp]
  float *q_, *p_, *do_, *dq_;                 // [kQueries, Kp | Vp]
  float *dk_, *dv_;                           // [places, Kp | Vp]
  float* dr_;                                 // [R, Kp]
  float *dmean_, *later_;                     // [M, Vp]
};

/// Adds to tokens what later runs have for them, and finds what the means before the call have.
void gather(const VqCall& call, const VqGradients& d) {
  const int64_t H = call.H, K = call.K, V = call.V, M = call.aggregate ? call.M : 0;
  parallel(call.B * H, call.B * call.T * H * (K + V) / 8, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* later = scratch.take(M * V + 1);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / H, h = item % H;
      const auto count_after = [&](int64_t m) { return d.count[item * M + m]; };
      for (int64_t m = 0; m < M; ++m) {
        std::fill_n(later + m * V, V, 0.0f);
        if (count_after(m) == 0) continue;
        add_scaled(1 / static_cast<float>(count_after(m)), d.mean_after + (item * M + m) * V, V, later + m * V);
      }
      bool restarted = false;
      for (size_t n = call.runs.size(); n-- > 0;) {
        const VqRun& run = call.runs[n];
        if (run.b != b) continue;
        for (int64_t i = 0; i < run.overlap; ++i) {
          const int64_t from = (run.before + i) * H + h, to = (b * call.E + run.lowest + i) * H + h;
          add_scaled(1, d.overlap_k + from * K, K, d.k + to * K);
          add_scaled(1, d.overlap_v + from * V, V, d.v + to * V);
        }
        if (M == 0) continue;
        bool restarts = false;
        for (int64_t i = run.end; i-- > run.first && !restarts;) {
          const VqBlock& block = call.blocks[static_cast<size_t>(i)];
          for (int64_t j = block.recent; j < block.leave; ++j) {
            const int64_t at = (b * call.E + j) * H + h;
            add_scaled(1, later + call.code[at] * V, V, d.v + at * V);
          }
          restarts = block.restart;
        }
        if (restarts) std::fill_n(later, M * V, 0.0f);
        add_scaled(1, d.run_sum + (static_cast<int64_t>(n) * H + h) * M * V, M * V, later);
        restarted |= restarts;
      }
      for (int64_t m = 0; m < M; ++m) {
        float* to = d.mean + (item * M + m) * V;
        const int64_t count = call.count[item * M + m];
        std::fill_n(to, V, 0.0f);
        if (count > 0) {
          add_scaled(static_cast<float>(count), later + m * V, V, to);
        } else if (count_after(m) == 0 && !restarted) {
          copy(d.mean_after + (item * M + m) * V, V, to);
        }
      }
    }
  });
}

void backward(const VqCall& call, const VqGradients& d) {
  std::fill_n(d.k, call.B * call.E * call.H * call.K, 0.0f);
  std::fill_n(d.v, call.B * call.E * call.H * call.V, 0.0f);
  each_run(call, [&](int64_t n, int64_t h) {
    Scratch scratch;
    Backward(scratch, call, d, n, h).run();
  });
  gather(call, d);
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

void cpu::vq_attention_forward(const VqCall& call, const VqResult& result) {
  HWY_DYNAMIC_DISPATCH(forward)(call, result);
}
void cpu::vq_attention_backward(const VqCall& call, const VqGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(backward)(call, gradients);
}

}  // namespace lineal::kernels
#endif
