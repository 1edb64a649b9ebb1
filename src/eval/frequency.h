// The frequency baseline: every token predicted as often as the training text has it, whatever the context.
//   p(x) = (count of x + 1) / (tokens + ids)           add-one, so that no token of another text is impossible
#pragma once

#include <vector>

#include "data/split.h"

namespace lineal {

/// How often each id occurs, [N].
std::vector<int64_t> count_tokens(const Part& part, int64_t N);

struct FrequencyBaseline {
  double nats = 0;      // per token
  double accuracy = 0;  // of always naming the most frequent
};

/// Of predicting `targets` from `counts`, both [N]; ids that are in `never` (special tokens that are no targets) get
/// no probability. Throws Error without targets.
FrequencyBaseline frequency_baseline(const std::vector<int64_t>& counts, const std::vector<int64_t>& targets,
                                     const std::vector<int64_t>& never);

}  // namespace lineal
