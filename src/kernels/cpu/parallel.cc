#include "kernels/cpu/parallel.h"

#include <ATen/Parallel.h>

namespace lineal::kernels::cpu {

void parallel(int64_t n, const std::function<void(int64_t, int64_t)>& work) { at::parallel_for(0, n, 1, work); }

void parallel(int64_t n, int64_t operations, const std::function<void(int64_t, int64_t)>& work) {
  if (operations < 1 << 16) return work(0, n);
  parallel(n, work);
}

int64_t threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

}  // namespace lineal::kernels::cpu
