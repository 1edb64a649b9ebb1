// Threads for the CPU kernels: LibTorch's own pool.
#pragma once

#include <cstdint>
#include <functional>

namespace lineal::kernels::cpu {

/// Calls work(begin, end) for pieces that cover [0, n), in as many threads as LibTorch uses. Items must not depend on
/// one another, nor results on how they are cut.
void parallel(int64_t n, const std::function<void(int64_t, int64_t)>& work);

/// The same, in this thread alone when all items together are `operations` of too little work to share: a thread costs
/// what 2^16 multiplications of vectors in cache do.
void parallel(int64_t n, int64_t operations, const std::function<void(int64_t, int64_t)>& work);

/// How many threads `parallel` would use for enough items.
int64_t threads();

}  // namespace lineal::kernels::cpu
