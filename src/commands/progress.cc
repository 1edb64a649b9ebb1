#include "commands/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "core/error.h"

namespace lineal {
namespace {

constexpr int kWidth = 24;

std::string duration(double seconds) {
  const auto total = static_cast<int64_t>(seconds);
  std::ostringstream out;
  if (total >= 3600) out << total / 3600 << ":" << std::setw(2) << std::setfill('0');
  out << total / 60 % 60 << ":" << std::setw(2) << std::setfill('0') << total % 60;
  return out.str();
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::string short_number(double value) {
  std::ostringstream out;
  const char* unit = value >= 1e9 ? "G" : value >= 1e6 ? "M" : value >= 1e3 ? "k" : "";
  const double scaled = value >= 1e9 ? value / 1e9 : value >= 1e6 ? value / 1e6 : value >= 1e3 ? value / 1e3 : value;
  out << std::fixed << std::setprecision(scaled < 100 && *unit ? 1 : 0) << scaled << unit;
  return out.str();
}

std::string formatted(const char* format, double value) {
  char line[64];
  std::snprintf(line, sizeof line, format, value);
  return line;
}

ProgressBar::ProgressBar(bool wanted) : shown_(wanted && ::isatty(STDERR_FILENO)) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::cerr << std::endl;
}

void ProgressBar::draw(double done, double total, const std::string& what) {
  if (!shown_) return;
  if (first_ && done < total && seconds_since(last_) < 0.1) return;
  last_ = Clock::now();
  std::ostringstream line;
  if (total > 0) {
    const double fraction = std::clamp(done / total, 0.0, 1.0);
    const auto filled = static_cast<size_t>(fraction * kWidth);
    line << "[" << std::string(filled, '=') << std::string(kWidth - filled, ' ') << "] ";
    line << what;
    if (!first_) first_ = fraction, start_ = last_;
    if (fraction > *first_) {
      line << "  " << duration(seconds_since(start_) / (fraction - *first_) * (1 - fraction)) << " left";
    }
  } else {
    first_ = 0;
    line << what;
  }
  std::cerr << "\r\033[K" << line.str() << std::flush;
  drawn_ = true;
}

void ProgressBar::clear() {
  if (drawn_) std::cerr << "\r\033[K" << std::flush;
  drawn_ = false;
}

ReadingBar::ReadingBar(const std::vector<Source>& sources, int64_t limit) : limit_(static_cast<double>(limit)) {
  for (const Source& source : sources) bytes_ += static_cast<double>(source.size);
  const auto regular = [](const Source& source) { return source.regular; };
  if (!std::all_of(sources.begin(), sources.end(), regular)) bytes_ = 0;
}

void ReadingBar::draw(int64_t tokens, int64_t bytes) {
  const auto count = static_cast<double>(tokens);
  const double by_bytes = bytes_ > 0 ? static_cast<double>(bytes) / bytes_ : 0,
               by_limit = limit_ > 0 ? count / limit_ : 0;
  const std::string what =
      text(short_number(count), " tokens  ", short_number(count / std::max(seconds_since(start_), 1e-3)), " tokens/s");
  bar_.draw(std::max(by_bytes, by_limit), bytes_ > 0 || limit_ > 0 ? 1 : 0, what);
}

}  // namespace lineal
