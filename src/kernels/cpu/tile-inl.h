// The register-blocked micro-kernels in which the CPU kernels are written: tile products, transposition, row sums.
// Included once per instruction set; everything is float32, row-major, in tiles whose rows are a whole number of
// kAlign floats long and zero beyond the columns in use, so that no kernel has a tail.
#if defined(LINEAL_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LINEAL_KERNELS_CPU_TILE_INL_H_
#undef LINEAL_KERNELS_CPU_TILE_INL_H_
#else
#define LINEAL_KERNELS_CPU_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Wide = hn::CappedTag<float, 16>;
using Vec = hn::Vec<Wide>;
constexpr Wide kWide;
constexpr int64_t kLanes = hn::MaxLanes(Wide());

/// Loops over arrays of vectors are unrolled by this, before the compiler decides what lives in registers:
/// arrays whose loops are unrolled later stay in memory.
#define LINEAL_UNROLL HWY_UNROLL(32)

/// How many rows of how many vectors stay in registers, so that accumulators, one row of B and one element of A fit.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kAccumulators = 24, kMostVectors = 4;  // 32 registers
#else
constexpr int kAccumulators = 12, kMostVectors = 2;  // 16 registers
#endif

/// An operand read one element at a time: element (i, l) is data[i * row + l * column]. A transposed matrix is one with
/// row and column exchanged.
struct Elements {
  const float* data;
  int64_t row, column = 1;

  Elements from(int64_t i) const { return {data + i * row, row, column}; }
};

/// How a product ends: C = alpha A B, C += alpha A B, or C = A B + b, the row under B.
enum class Store { set, add, biased };

/// The end of a block of a product. alpha = 1 costs no multiplication: with k = 16 it would be one in seventeen.
template <Store store, bool scaled, int R, int N>
HWY_INLINE void store_block(const Vec (&sum)[R][N], float* HWY_RESTRICT c, int64_t c_row, float alpha) {
  const Vec scale = hn::Set(kWide, alpha);
  LINEAL_UNROLL
  for (int r = 0; r < R; ++r) {
    LINEAL_UNROLL
    for (int n = 0; n < N; ++n) {
      float* to = c + r * c_row + n * kLanes;
      Vec y = sum[r][n];
      if constexpr (store == Store::add) {
        const Vec old = hn::LoadU(kWide, to);
        y = scaled ? hn::MulAdd(scale, y, old) : hn::Add(y, old);
      } else if constexpr (scaled) {
        y = hn::Mul(scale, y);
      }
      hn::StoreU(y, kWide, to);
    }
  }
}

/// Rows [0, R) and vectors [0, N) of a product over k. Out of line, and b pinned in registers: inlined, the compiler
/// folds the loads of b into the multiplications and spills accumulators. A comes as three arguments: a struct is
/// written in words and copied as a vector, a load that waits until all stores before it are done, sixty of four
/// hundred cycles.
template <Store store, int R, int N>
HWY_NOINLINE void product_block(int64_t k, const float* a, int64_t row, int64_t column, const float* HWY_RESTRICT b,
                                int64_t b_row, float* HWY_RESTRICT c, int64_t c_row, float alpha) {
  Vec sum[R][N];
  LINEAL_UNROLL
  for (int r = 0; r < R; ++r) {
    LINEAL_UNROLL
    for (int n = 0; n < N; ++n) {
      sum[r][n] = store == Store::biased ? hn::LoadU(kWide, b + k * b_row + n * kLanes) : hn::Zero(kWide);
    }
  }
  const float* element[(R + 3) / 4];  // of every fourth row: more pointers than registers would be loaded each time
  LINEAL_UNROLL
  for (int r = 0; r < R; r += 4) element[r / 4] = a + r * row;
  for (int64_t l = 0; l < k; ++l, b += b_row) {
    Vec b_l[N];
    LINEAL_UNROLL
    for (int n = 0; n < N; ++n) {
      b_l[n] = hn::LoadU(kWide, b + n * kLanes);
#if HWY_ARCH_X86
      asm("" : "+v"(b_l[n].raw));
#endif
    }
    LINEAL_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec a_rl = hn::Set(kWide, element[r / 4][r % 4 * row]);
      LINEAL_UNROLL
      for (int n = 0; n < N; ++n) sum[r][n] = hn::MulAdd(a_rl, b_l[n], sum[r][n]);
    }
    LINEAL_UNROLL
    for (int r = 0; r < R; r += 4) element[r / 4] += column;
  }
  if (store == Store::biased || alpha == 1) {
    store_block<store, false>(sum, c, c_row, 1);
  } else {
    store_block<store, true>(sum, c, c_row, alpha);
  }
}

using ProductBlock = void (*)(int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, float);

template <Store store, int N, size_t... R>
constexpr auto product_blocks(std::index_sequence<R...>) {
  return std::array<ProductBlock, sizeof...(R)>{&product_block<store, static_cast<int>(R) + 1, N>...};
}

/// `m` rows of N vectors, in blocks of nearly equal height. `lower`: row i uses only the first i + 1 elements of A.
template <Store store, int N>
HWY_INLINE void product_columns(int64_t m, int64_t k, const Elements& a, const float* b, int64_t b_row, float* c,
                                int64_t c_row, float alpha, bool lower) {
  constexpr int64_t kMost = kAccumulators / N;
  static constexpr auto blocks = product_blocks<store, N>(std::make_index_sequence<kMost>());
  int64_t left = (m + kMost - 1) / kMost;
  for (int64_t i = 0; i < m; --left) {
    const int64_t rows = (m - i + left - 1) / left;
    blocks[static_cast<size_t>(rows - 1)](lower ? std::min(k, i + rows) : k, a.data + i * a.row, a.row, a.column, b,
                                          b_row, c + i * c_row, c_row, alpha);
    i += rows;
  }
}

/// C [m, n] (rows c_row apart) = or += alpha A B, with A [m, k] and B [k, n]; columns up to the next multiple of kLanes
/// are written too. Biased, with B [k + 1, n]: without alpha and `lower`. `lower`: A is lower triangular, and zero
/// above within blocks of its diagonal.
template <Store store>
void product(int64_t m, int64_t n, int64_t k, const Elements& a, const float* b, int64_t b_row, float* c, int64_t c_row,
             float alpha = 1, bool lower = false) {
  HWY_DASSERT(store != Store::biased || (!lower && alpha == 1));
  for (int64_t j = 0; j < n;) {
    const int64_t vectors = std::min<int64_t>((n - j + kLanes - 1) / kLanes, kMostVectors);
    const auto columns = [&](auto count) {
      product_columns<store, decltype(count)::value>(m, k, a, b + j, b_row, c + j, c_row, alpha, lower);
    };
    switch (vectors) {
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
      case 4:
        columns(std::integral_constant<int, 4>());
        break;
      case 3:
        columns(std::integral_constant<int, 3>());
        break;
#endif
      case 2:
        columns(std::integral_constant<int, 2>());
        break;
      default:
        columns(std::integral_constant<int, 1>());
    }
    j += vectors * kLanes;
  }
}

/// Four columns of so many rows as D has lanes; the first row of its blocks of four.
template <class D>
HWY_INLINE hn::Vec<D> every_fourth(D d, const float* from, int64_t row) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, every_fourth(half, from + hn::MaxLanes(half) * row, row), every_fourth(half, from, row));
  }
}

/// to [n, lanes of D] = from [lanes of D, n]^T, n rounded up to a multiple of 4.
template <class D>
HWY_INLINE void transpose_rows(D d, int64_t n, const float* HWY_RESTRICT from, int64_t from_row, float* HWY_RESTRICT to,
                               int64_t to_row) {
  const hn::Repartition<uint64_t, D> pair;
  for (int64_t j = 0; j < n; j += 4, from += 4, to += 4 * to_row) {
    const auto row = [&](int64_t i) { return every_fourth(d, from + i * from_row, from_row); };
    const auto r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
    const auto low01 = hn::BitCast(pair, hn::InterleaveLower(d, r0, r1));
    const auto low23 = hn::BitCast(pair, hn::InterleaveLower(d, r2, r3));
    const auto high01 = hn::BitCast(pair, hn::InterleaveUpper(d, r0, r1));
    const auto high23 = hn::BitCast(pair, hn::InterleaveUpper(d, r2, r3));
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pair, low01, low23)), d, to);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pair, low01, low23)), d, to + to_row);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pair, high01, high23)), d, to + 2 * to_row);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pair, high01, high23)), d, to + 3 * to_row);
  }
}

/// to [n, m] = from [m, n]^T. m and n are rounded up to multiples of 4: `from` must have those rows.
inline void transpose(int64_t m, int64_t n, const float* HWY_RESTRICT from, int64_t from_row, float* HWY_RESTRICT to,
                      int64_t to_row) {
  int64_t i = 0;
  for (; i + kLanes <= m; i += kLanes) transpose_rows(kWide, n, from + i * from_row, from_row, to + i, to_row);
  const hn::FixedTag<float, 4> quad;
  for (; i < m; i += 4) transpose_rows(quad, n, from + i * from_row, from_row, to + i, to_row);
}

/// The sum of the lanes.
HWY_INLINE float total(Vec v) { return hn::GetLane(hn::SumOfLanes(kWide, v)); }

}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // LINEAL_KERNELS_CPU_TILE_INL_H_
