#include "kernels/cpu/instructions.h"

#include <hwy/highway.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "core/error.h"

namespace lineal::kernels::cpu {

namespace {

/// Highway's AVX3, AVX3_DL, AVX3_ZEN4 and AVX3_SPR are what everyone calls AVX-512.
std::string name_of(int64_t target) {
  const std::string name = hwy::TargetName(target);
  return name.starts_with("AVX3") ? "AVX-512" : name;
}

/// As LINEAL_CPU may have it: "avx512" of "AVX-512".
std::string plain(std::string name) {
  std::erase(name, '-');
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

}  // namespace

void limit_instructions() {
  const char* given = std::getenv("LINEAL_CPU");
  if (given == nullptr || *given == 0) return;
  std::vector<std::string> names;
  for (int64_t rest = HWY_TARGETS; rest != 0; rest &= rest - 1) {  // wider ones have lower bits
    const int64_t target = rest & -rest;
    const std::string name = plain(name_of(target));
    if (name == plain(given)) return hwy::DisableTargets(target - 1);
    if (names.empty() || names.back() != name) names.push_back(name);
  }
  fail_unknown("LINEAL_CPU", "instruction set", given, names);
}

std::string instructions() {
  const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return name_of(usable & -usable);
}

}  // namespace lineal::kernels::cpu
