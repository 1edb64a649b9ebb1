// Regular expressions in the syntax that published tokenizers are written in: Oniguruma's, Ruby flavour, over UTF-8.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lineal {

/// Bytes [begin, end) of a text.
struct Span {
  size_t begin = 0;
  size_t end = 0;
};

class Pattern {
 public:
  /// Throws Error naming `who` for what is no pattern.
  Pattern(std::string_view source, const std::string& who);
  /// One that matches this text only.
  static Pattern literal(std::string_view source, const std::string& who);

 private:
  friend class Matches;
  std::shared_ptr<void> compiled_;
  std::string who_;
};

/// The matches in a text that is UTF-8, from left to right, none overlapping another; an empty one does not follow the
/// match before it at once.
class Matches {
 public:
  Matches(const Pattern& pattern, std::string_view text);
  /// The next, or nothing. Throws Error for a search that takes too long.
  std::optional<Span> next();

 private:
  const Pattern& pattern_;
  std::string_view text_;
  std::shared_ptr<void> region_;
  size_t from_ = 0;
  std::optional<size_t> last_end_;
};

}  // namespace lineal
