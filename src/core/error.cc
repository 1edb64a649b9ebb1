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

constexpr size_t kLongestName = 200;

/// On one line of bounded length, whatever a file calls something.
std::string one_line(std::string_view name) {
  size_t end = std::min(name.size(), kLongestName);
  while (end < name.size() && end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0) == 0x80) --end;
  std::string line(name.substr(0, end));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return (c >= 0 && c < ' ') || c == 0x7F; }, '?');
  return line + (end < name.size() ? "..." : "");
}

}  // namespace

std::string reason(int error) { return std::generic_category().message(error); }

std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  std::string best;
  if (name.size() > kLongestName) return best;
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
  fail(who, who.empty() ? "" : ": ", "unknown ", what, " '", one_line(name), "'",
       near.empty() ? "" : "; did you mean '" + near + "'?", " (known: ", known, ")");
}

}  // namespace lineal
