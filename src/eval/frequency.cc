#include "eval/frequency.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace lineal {

std::vector<int64_t> count_tokens(const Part& part, int64_t N) {
  constexpr int64_t kBlock = 1 << 20;
  std::vector<int64_t> counts(static_cast<size_t>(N)), tokens(kBlock);
  for (const TokenSpan& document : part.documents) {
    for (int64_t from = document.begin; from < document.end; from += kBlock) {
      const TokenSpan span = {from, std::min(from + kBlock, document.end)};
      part.store->copy(span, tokens.data());
      for (int64_t i = 0; i < span.size(); ++i) ++counts.at(static_cast<size_t>(tokens[static_cast<size_t>(i)]));
    }
  }
  return counts;
}

FrequencyBaseline frequency_baseline(const std::vector<int64_t>& counts, const std::vector<int64_t>& targets,
                                     const std::vector<int64_t>& never) {
  double total = 0, predicted = 0;
  size_t most = counts.size();
  const auto possible = [&](size_t id) {
    return std::find(never.begin(), never.end(), static_cast<int64_t>(id)) == never.end();
  };
  for (size_t id = 0; id < counts.size(); ++id) {
    if (!possible(id)) continue;
    total += static_cast<double>(counts[id] + 1);
    predicted += static_cast<double>(targets.at(id));
    if (most == counts.size() || counts[id] > counts[most]) most = id;
  }
  if (predicted == 0) fail("frequency baseline: no token to predict");
  FrequencyBaseline result;
  for (size_t id = 0; id < counts.size(); ++id) {
    if (!possible(id) || targets[id] == 0) continue;
    result.nats -= static_cast<double>(targets[id]) * std::log(static_cast<double>(counts[id] + 1) / total);
  }
  result.nats /= predicted;
  result.accuracy = static_cast<double>(targets[most]) / predicted;
  return result;
}

}  // namespace lineal
