// What this machine can do at most, with the threads LibTorch uses: what kernels are measured against.
#pragma once

#include "bench/repeat.h"
#include "core/config.h"

namespace lineal {

struct Machine {
  double sgemm = 0, bf16_gemm = 0;  // flops per second of LibTorch's square products
  double tiles = 0;                 // of the kernels' own product of tiles in L1
  double copy = 0;                  // bytes per second, read and written, of tensors larger than the caches
};

/// What `repeat` has to time, among other computations or alone, and what its times for them say.
std::vector<Repeated> machine_computations();
Machine machine(const std::vector<RunTime>& times);

/// {"threads", "instructions", "sgemm_gflops", "bf16_gemm_gflops", "tiles_gflops", "copy_gbytes"}; per second, in 1e9.
Json to_json(const Machine& machine);

}  // namespace lineal
