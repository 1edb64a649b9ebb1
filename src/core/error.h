// A mistake of the user's: one line that says who, what, expected, got, and what would work.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace lineal {

/// The one exception type for mistakes a user can mend; the program prints what() and exits with code 2.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Its arguments written one after another, as operator<< prints them.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(text(parts...));
}

/// LibTorch appends a stack trace to its messages; a person wants the first line.
std::string first_line(const std::string& message);

/// What the operating system calls an errno: "No such file or directory".
std::string reason(int error);

/// The candidate with the smallest edit distance to `name`, or "" when that is above a third of its length, rounded up,
/// or would change all of it.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

/// Throws "who: unknown what 'name'; did you mean 'nearest'? (known: a, b, c)"; of a long list the first.
[[noreturn]] void fail_unknown(std::string_view who, std::string_view what, std::string_view name,
                               const std::vector<std::string>& candidates);

}  // namespace lineal
