#include "core/error.h"

#include <algorithm>
#include <numeric>
#include <system_error>

namespace lineal {
namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substitute = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, substitute});
    }
  }
  return row.back();
}

}  // namespace

std::string reason(int error) { return std::generic_category().message(error); }

std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::min((name.size() + 2) / 3 + 1, name.size());
  for (const auto& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) best = candidate, best_distance = distance;
  }
  return best;
}

void fail_unknown(std::string_view who, std::string_view what, std::string_view name,
                  const std::vector<std::string>& candidates) {
  constexpr size_t kMost = 400;  // characters
  std::string known;
  for (const auto& candidate : candidates) {
    if (known.size() + candidate.size() > kMost) {
      known += text(", ..., ", candidates.size(), " in all");
      break;
    }
    known += (known.empty() ? "" : ", ") + candidate;
  }
  const std::string near = nearest(name, candidates);
  fail(who, who.empty() ? "" : ": ", "unknown ", what, " '", name, "'",
       near.empty() ? "" : "; did you mean '" + near + "'?", " (known: ", known, ")");
}

}  // namespace lineal
