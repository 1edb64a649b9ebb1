// The next token from logits: penalty, temperature, top-k, top-p, min-p, one draw.
//   l_i      <- l_i / r if l_i > 0 else l_i * r, for tokens among the last `repeat_window`   (CTRL, 2019, section 4.1)
//   p        = softmax(l / temp)
//   top-k    the k most probable                                   (Hierarchical Neural Story Generation, 2018)
//   top-p    the fewest most probable whose sum reaches p          (The Curious Case of Neural Text Degeneration, 2019)
//   min-p    those with at least min_p times the highest probability                        (Turning Up the Heat, 2024)
// Each filter sees what the one before it left, normalised again; of equal logits the smaller id comes first.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <random>
#include <vector>

#include "core/config.h"

namespace lineal {

using at::Tensor;

struct SamplerConfig : Config {
  double temp = 1;
  int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double repeat_penalty = 1;
  int64_t repeat_window = 64;

  std::vector<Field> fields() override;
};

struct Candidate {
  int64_t token;
  double probability;
};

/// The tokens that may come next, most probable first; their probabilities add up to 1. logits [N], any float type.
/// temp 0 leaves only the most probable one. Throws Error for logits that are NaN, +inf or all -inf.
std::vector<Candidate> candidates(const Tensor& logits, const SamplerConfig& config, const std::deque<int64_t>& recent);

/// Draws with a generator of its own: the same tokens for the same seed and logits on every machine.
class Sampler {
 public:
  Sampler(SamplerConfig config, uint64_t seed);
  /// Lets the penalty see a token of the prompt.
  void observe(int64_t token);
  /// The next token, observed; logits [N].
  int64_t next(const Tensor& logits);

 private:
  SamplerConfig config_;
  std::mt19937_64 generator_;
  std::deque<int64_t> recent_;
};

}  // namespace lineal
