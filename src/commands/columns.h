// Tables of text, one line a row.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/config.h"

namespace lineal {

using Cells = std::vector<std::string>;

/// Columns as wide as their titles and as the cells of the rows that are known when it is made; a wider cell of another
/// row moves what follows it. The first column is aligned left, the others right.
class Columns {
 public:
  explicit Columns(Cells titles, const std::vector<Cells>& known = {});
  std::string titles() const { return line(titles_); }
  /// One cell for each title, and perhaps a note. Ends in a newline.
  std::string line(const Cells& cells) const;

 private:
  Cells titles_;
  std::vector<size_t> widths_;
};

/// A column of numbers: scale row[key], as printf's `format` has it; "-" where the row has none.
struct NumberColumn {
  const char *title, *key, *format;
  double scale = 1;
};
Cells titles_of(Cells first, std::span<const NumberColumn> numbers);
Cells cells_of(Cells first, std::span<const NumberColumn> numbers, const Json& row);

/// "1 thread", "2 threads".
std::string counted(int64_t count, const std::string& what);

}  // namespace lineal
