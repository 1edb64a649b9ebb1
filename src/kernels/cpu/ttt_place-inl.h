// Where the TTT kernels' tokens and weights lie: loads and stores in float32 or bfloat16, and what memory does beside
// the products.
#if defined(LINEAL_KERNELS_CPU_TTT_PLACE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_TTT_PLACE_INL_H_
#undef LINEAL_KERNELS_CPU_TTT_PLACE_INL_H_
#else
#define LINEAL_KERNELS_CPU_TTT_PLACE_INL_H_
#endif

#include "kernels/cpu/rows-inl.h"
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

/// What memory does beside the products, a little between their pieces: it brings the rows of the next block and takes
/// a copy of the state. All at once the loads would wait for one another, and the products for all of them.
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
  /// And n floats at x.
  void also(const float* x, int64_t n) { also_ = x, also_end_ = x + n; }
  /// to [0, n) = from around the caches, multiples of a vector's lanes and aligned to it, while `from` stays as it is.
  void copy(const float* from, int64_t n, float* to) { from_ = from, to_ = to, end_ = from + n; }
  /// The rest of the copy.
  void finish_copy() { copy_some(end_ - from_); }

  void some(int64_t rows) {
    copy_some(kCopied);
    for (int64_t i = 0; i < kAlso && also_ < also_end_; ++i, also_ += kAlign) hwy::Prefetch(also_);
    for (; rows > 0 && left_ > 0; --rows, --left_, ++i_) {
      for (size_t s = 0; s < count_; ++s) {
        const char* row = static_cast<const char*>(streams_[s].data) + at_.row(i_) * streams_[s].bytes;
        for (int64_t j = 0; j < K_ * streams_[s].bytes; j += 64) prefetch_ahead(row + j);
      }
    }
  }

 private:
  static constexpr int64_t kCopied = 1024;  // floats between two pieces
  static constexpr int64_t kAlso = 16;      // lines

  HWY_INLINE void copy_some(int64_t n) {
    const float* until = from_ + std::min(n, static_cast<int64_t>(end_ - from_));
    for (; from_ < until; from_ += kLanes, to_ += kLanes) hn::Stream(load(from_), kWide, to_);
  }

  Place at_;
  int64_t left_ = 0, K_ = 0, i_ = 0;
  size_t count_ = 0;
  Stream streams_[9];
  const float *also_ = nullptr, *also_end_ = nullptr;
  const float *from_ = nullptr, *end_ = nullptr;
  float* to_ = nullptr;
};

/// product in pieces, with `rows` of the next block between them.
template <Store store_as>
void product_ahead(Ahead& ahead, int64_t rows, int64_t m, int64_t n, int64_t k, const Elements& a, const float* b,
                   int64_t b_row, float* c, int64_t c_row, float alpha = 1) {
  constexpr int64_t kPiece = 24;  // rows: whole blocks of 6, 8, 12 or 24
  for (int64_t i = 0; i < m; i += kPiece) {
    product<store_as>(std::min(kPiece, m - i), n, k, a.from(i), b, b_row, c + i * c_row, c_row, alpha);
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

/// y [0, n) += alpha times the sum of `count` rows of x, n a multiple of kLanes.
inline void add_rows(float alpha, const float* x, int64_t count, int64_t n, float* y) {
  for (int64_t j = 0; j < n; j += kLanes) {
    Vec sum = hn::Zero(kWide);
    for (int64_t i = 0; i < count; ++i) sum = hn::Add(sum, load(x + i * n + j));
    store(hn::MulAdd(all(alpha), sum, load(y + j)), y + j);
  }
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_TTT_PLACE_INL_H_
