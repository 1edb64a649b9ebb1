// lineal bench decode.
#pragma once

#include <string>
#include <vector>

namespace lineal {

int run_bench_decode(const std::vector<std::string>& args);

}  // namespace lineal
