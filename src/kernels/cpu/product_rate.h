// How fast the micro-kernel of the tile products is by itself: the ceiling of the kernels built on it.
#pragma once

#include <cstdint>

namespace lineal::kernels::cpu {

/// Rows, columns and depth of the product: an inner batch of 16 tokens through a layer of 64 x 64.
constexpr int64_t kRateRows = 16, kRateColumns = 64, kRateDepth = 64;

/// Computes that product `count` times in each of so many threads, from tiles that stay in L1.
void repeat_products(int64_t threads, int64_t count);

}  // namespace lineal::kernels::cpu
