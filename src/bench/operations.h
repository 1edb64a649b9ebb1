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
  static constexpr int64_t M = 256;         // random features
  int64_t window = 512, codes = 512;        // of attention over quantised keys, in blocks of 128 tokens
  int64_t read = 0;                         // tokens that it has read before
  int64_t sessions = 64;                    // that step at once
  int64_t pool = 0;  // rows of the state that they are chosen of; 0: none, the calls begin with a state of their own
};

/// An operation with random inputs: forward, forward and backward, or a step of one token for each of some sessions, in
/// place. The sessions are others in each call, of so many that no cache holds them.
struct OperationPass {
  std::string name;  // "delta_rule", "delta_rule both", "delta_rule step"
  Repeated call;
  int64_t tokens;  // of one call
  double flops;    // of one call: what its best known algorithm needs
  double bytes;    // of one call: inputs and results, of a step the state too, read or written once
};

/// The passes of the named operations, in their order; of all when there are no names. The reference is called where
/// --kernels says so. An unknown name is an Error.
std::vector<OperationPass> operation_passes(const std::vector<std::string>& names, const OperationSizes& sizes);

}  // namespace lineal
