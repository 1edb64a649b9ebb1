#include "commands/columns.h"

#include <algorithm>

#include "commands/progress.h"

namespace lineal {

Columns::Columns(Cells titles, const std::vector<Cells>& known) : titles_(std::move(titles)), widths_(titles_.size()) {
  const auto widen = [&](const Cells& cells) {
    for (size_t i = 0; i < std::min(cells.size(), widths_.size()); ++i) {
      widths_[i] = std::max(widths_[i], cells[i].size());
    }
  };
  widen(titles_);
  for (const Cells& cells : known) widen(cells);
}

std::string Columns::line(const Cells& cells) const {
  std::string result;
  for (size_t i = 0; i < cells.size(); ++i) {
    const size_t width = i < widths_.size() ? widths_[i] : 0;
    const std::string padding(width - std::min(width, cells[i].size()), ' ');
    if (i == 0) {
      result = cells[i] + padding;
    } else {
      result += "  " + padding + cells[i];
    }
  }
  result.resize(result.find_last_not_of(' ') + 1);
  return result + "\n";
}

Cells titles_of(Cells first, std::span<const NumberColumn> numbers) {
  for (const NumberColumn& column : numbers) first.push_back(column.title);
  return first;
}

Cells cells_of(Cells first, std::span<const NumberColumn> numbers, const Json& row) {
  for (const auto& [title, key, format, scale] : numbers) {
    first.push_back(row.contains(key) ? formatted(format, scale * row[key].get<double>()) : "-");
  }
  return first;
}

std::string counted(int64_t count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

}  // namespace lineal
