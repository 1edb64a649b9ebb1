// The fused operations by themselves: time, work and traffic.
#pragma once

#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

#include "bench/repeat.h"

namespace lineal {

struct OperationSizes {
  int64_t B = 1, H = 12, K = 64, T = 2048;  // K is V too; what has no heads has D = H K channels
  int64_t C = 16;                           // tokens of an inner batch
  int64_t vocabulary = 8192;                // of token_loss
  int64_t window = 512, codes = 512;        // of attention over quantised keys, in blocks of 128 tokens
  int64_t read = 0;                         // tokens that it has read before
  int64_t sessions = 64;                    // that step at once
  int64_t pool = 0;  // rows of the state that they are chosen of; 0: none, the calls begin with a state of their own
  c10::ScalarType type = c10::kFloat;  // of what each operation takes in bfloat16, if it takes any so

  static constexpr int64_t N = 16;   // state of a scan's channel
  static constexpr int64_t M = 256;  // random features
  static constexpr int64_t J = 4;    // taps of a short convolution

  int64_t tokens() const { return B * T; }
  int64_t channels() const { return H * K; }
  /// Sequences of which there are states.
  int64_t states() const { return pool > 0 ? pool : B; }
};

/// An operation with random inputs: forward, forward and backward, or a step of one token for each of some sessions, in
/// place. The sessions are others in each call, of a pool of 256 MiB or, of small states, of as many as 16384 calls
/// step.
struct OperationPass {
  std::string name;  // "delta_rule", "delta_rule both", "delta_rule step"
  Repeated call;
  int64_t tokens;  // of one call
  double flops;    // of one call: what its best known algorithm needs
  double bytes;    // of one call: inputs and results, of a step the state too, read or written once
};

/// Their names, in the order of their passes.
std::vector<std::string> operation_names();

/// Why the operation has no passes of these sizes: "float32 only"; or empty.
std::string operation_refusal(const std::string& name, const OperationSizes& sizes);

constexpr const char* kOperationsNeedLess =
    "a shorter --length, or less of --batch-size, --heads, --head-size, --sessions, --vocab-size, --window or --read";

/// The passes of the named operations; of all that have some when there are no names. The reference is called where
/// --kernels says so. An unknown name, one without such passes, and sizes that need more than the machine's free memory
/// are Errors.
std::vector<OperationPass> operation_passes(const std::vector<std::string>& names, const OperationSizes& sizes);

}  // namespace lineal
