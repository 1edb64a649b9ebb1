// lineal bench op and lineal bench machine.
#pragma once

#include <string>
#include <vector>

namespace lineal {

int run_bench_operations(const std::vector<std::string>& args);
int run_bench_machine(const std::vector<std::string>& args);

}  // namespace lineal
