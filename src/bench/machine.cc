#include "bench/machine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "kernels/cpu/product_rate.h"
#include "kernels/kernels.h"

namespace lineal {
namespace {

using namespace kernels::cpu;

constexpr int64_t kSide = 1536, kBytes = 256 << 20, kProducts = 1000;

Repeated square_product(const char* name, at::ScalarType type) {
  const at::Tensor a = at::randn({kSide, kSide}).to(type), b = at::randn({kSide, kSide}).to(type);
  return {name, [a, b] { at::matmul(a, b); }};
}

}  // namespace

std::vector<Repeated> machine_computations() {
  kernels::chosen();  // the widest instructions to use
  const at::Tensor from = at::ones({kBytes}, at::kByte), to = at::zeros({kBytes}, at::kByte);
  return {square_product("sgemm", at::kFloat),
          square_product("bf16 gemm", at::kBFloat16),
          {"tiles", [] { repeat_products(at::get_num_threads(), kProducts); }},
          {"copy", [from, to] { to.copy_(from); }}};
}

Machine machine(const std::vector<RunTime>& times) {
  const double square = 2.0 * kSide * kSide * kSide;
  const double tiles = 2.0 * kRateRows * kRateColumns * kRateDepth * kProducts * at::get_num_threads();
  return {square / times[0].median, square / times[1].median, tiles / times[2].median, 2.0 * kBytes / times[3].median};
}

Json to_json(const Machine& machine) {
  return {{"threads", at::get_num_threads()},    {"instructions", kernels::cpu_instructions()},
          {"sgemm_gflops", machine.sgemm / 1e9}, {"bf16_gemm_gflops", machine.bf16_gemm / 1e9},
          {"tiles_gflops", machine.tiles / 1e9}, {"copy_gbytes", machine.copy / 1e9}};
}

}  // namespace lineal
