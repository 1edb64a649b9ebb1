// The nearest codeword of keys.
//   code = argmin_m |c_m|^2 - 2 k . c_m, the first of equal ones
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/nearest_code.cc"
#include <hwy/foreach_target.h>

#include <limits>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/cpu/vq_attention.h"

HWY_BEFORE_NAMESPACE();
namespace lineal::kernels::HWY_NAMESPACE {
namespace {

using namespace lineal::kernels::cpu;

constexpr int64_t kQueries = 32;  // whose products are in cache at once
constexpr int64_t kKeys = 1024;   // whose codes one item of work finds
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void nearest_code(int64_t tokens, int64_t H, int64_t K, int64_t M, const float* k, const float* codebook,
                  int64_t* code) {
  const int64_t Kp = padded(K), Mp = padded(M), pieces = (tokens + kKeys - 1) / kKeys;
  parallel(pieces * H, tokens * H * K * M / 16, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float *words = scratch.take(padded(M) * Kp), *columns = scratch.take(Kp * Mp);
    float *squares = scratch.take(Mp), *dots = scratch.take(kQueries * Mp);
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t h = item / pieces, from = item % pieces * kKeys, to = std::min(tokens, from + kKeys);
      if (h != loaded) {
        for (int64_t m = 0; m < M; ++m) copy_padded(codebook + (h * M + m) * K, K, Kp, words + m * Kp);
        transpose(M, K, words, Kp, columns, Mp);
        for (int64_t m = 0; m < Mp; ++m) {
          squares[m] = m < M ? dot(words + m * Kp, words + m * Kp, Kp) : kInfinity;
        }
        loaded = h;
      }
      for (int64_t t = from; t < to; t += kQueries) {
        const int64_t c = std::min(kQueries, to - t);
        product<Store::set>(c, M, K, {k + (t * H + h) * K, H * K}, columns, Mp, dots, Mp, -2);
        for (int64_t i = 0; i < c; ++i) {
          Vec least = all(kInfinity), where = hn::Zero(kWide), place = hn::Iota(kWide, 0);
          for (int64_t m = 0; m < M; m += kLanes, place = hn::Add(place, all(static_cast<float>(kLanes)))) {
            const Vec distance = hn::Add(load(squares + m), load(dots + i * Mp + m));
            const auto less = hn::Lt(distance, least);
            least = hn::IfThenElse(less, distance, least);
            where = hn::IfThenElse(less, place, where);
          }
          const Vec smallest = hn::MinOfLanes(kWide, least);
          const Vec first = hn::IfThenElse(hn::Eq(least, smallest), where, all(static_cast<float>(M)));
          const auto found = static_cast<int64_t>(hn::GetLane(hn::MinOfLanes(kWide, first)));
          code[(t + i) * H + h] = found < M ? found : 0;
        }
      }
    }
  });
}

}  // namespace
}  // namespace lineal::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lineal::kernels {

HWY_EXPORT(nearest_code);

void cpu::nearest_code(int64_t tokens, int64_t H, int64_t K, int64_t M, const float* k, const float* codebook,
                       int64_t* code) {
  HWY_DYNAMIC_DISPATCH(nearest_code)(tokens, H, K, M, k, codebook, code);
}

}  // namespace lineal::kernels
#endif
