#include "kernels/cpu/parallel.h"

#include <ATen/Parallel.h>

namespace lineal::kernels::cpu {

void parallel(int64_t n, const std::function<void(int64_t, int64_t)>& work) { at::parallel_for(0, n, 1, work); }

}  // namespace lineal::kernels::cpu
