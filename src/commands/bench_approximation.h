// lineal bench approximation and lineal bench propagation.
#pragma once

#include <string>
#include <vector>

namespace lineal {

int run_bench_approximation(const std::vector<std::string>& args);
int run_bench_propagation(const std::vector<std::string>& args);

}  // namespace lineal
