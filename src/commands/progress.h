// How far long work is, on a terminal.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "data/sources.h"

namespace lineal {

/// "1.5M", "12.0k", "7".
std::string short_number(double value);

/// `value` as printf's `format` has it, "%.2f".
std::string formatted(const char* format, double value);

/// One line of standard error, drawn over itself, when that is a terminal; nothing elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(bool wanted = true);
  ~ProgressBar();  // a bar that still shows stays, and what follows begins a line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  bool shown() const { return shown_; }
  /// `done` of `total` (0: unknown), in any unit, and what to say of it. At most ten times a second, but for the last.
  void draw(double done, double total, const std::string& what);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool shown_, drawn_ = false;
  Clock::time_point start_, last_;
  std::optional<double> first_;  // fraction at the first drawing, from which the time left is reckoned
};

/// The bar of reading `sources`, to their end or to `limit` tokens (0: none).
class ReadingBar {
 public:
  explicit ReadingBar(const std::vector<Source>& sources, int64_t limit = 0);
  /// Tokens read, and how far the files are read, in bytes.
  void draw(int64_t tokens, int64_t bytes);
  void clear() { bar_.clear(); }

 private:
  ProgressBar bar_;
  double bytes_ = 0, limit_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace lineal
