// Text from a stream of bytes: whole UTF-8 characters only, and nothing from a stop string on.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lineal {

/// Passes on whole characters and holds back the beginning of one. A byte that cannot belong to a character becomes
/// U+FFFD, as does the beginning of a character that breaks off (The Unicode Standard, section 3.9: maximal subparts).
/// Where the bytes are cut into pieces changes nothing of the text.
class Utf8Stream {
 public:
  /// The characters that `bytes` completes.
  std::string push(std::string_view bytes);
  /// What was held back, as U+FFFD, or "".
  std::string finish();

 private:
  std::string held_;
};

/// Passes on text up to the first stop string. The stop that is complete first ends it, of two that are so at the same
/// byte the longer; text that may be the beginning of a stop is held back until that is decided.
class StopStream {
 public:
  /// Throws Error for a stop that is empty or not UTF-8.
  explicit StopStream(std::vector<std::string> stops);
  /// The text that is now known to come before any stop; "" once stopped.
  std::string push(std::string_view text);
  /// What was held back, or "" once stopped.
  std::string finish();
  bool stopped() const { return !matched_.empty(); }
  /// The stop that was found, or "".
  const std::string& matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  std::string held_, matched_;
};

}  // namespace lineal
