// The fused operations by themselves: time, work and traffic.
#pragma once

#include <string>
#include <vector>

#include "bench/repeat.h"

namespace lineal {

struct OperationSizes {
  int64_t B = 1, H = 12, K = 64, T = 2048;  // K is V too
  static constexpr int64_t C = 16;          // tokens of an inner batch
  static constexpr int64_t N = 16;          // state of a scan's channel; it has H K channels
};

/// An operation with random inputs, forward or forward and backward.
struct OperationPass {
  std::string name;  // "delta_rule", "delta_rule both"
  Repeated call;
  double flops;  // of one call: what its best known algorithm needs
  double bytes;  // of one call: inputs and results, read or written once
};

/// Both passes of the named operations, in their order; of all when there are no names. The reference is called where
/// --kernels says so. An unknown name is an Error.
std::vector<OperationPass> operation_passes(const std::vector<std::string>& names, const OperationSizes& sizes);

}  // namespace lineal
