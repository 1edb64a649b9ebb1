// Which instruction set the CPU kernels are dispatched to.
#pragma once

#include <string>

namespace lineal::kernels::cpu {

/// Keeps the kernels from anything wider than the one the environment variable LINEAL_CPU names: avx512, avx2 or
/// sse4. Before the first kernel runs.
void limit_instructions();

/// "AVX-512", "AVX2", "SSE4", "NEON".
std::string instructions();

}  // namespace lineal::kernels::cpu
