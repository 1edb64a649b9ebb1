#include "generate/utf8.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace lineal {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Lead {
  size_t length;              // of the character; 0: no character begins so
  unsigned char least, most;  // of the second byte; later ones are 80 to BF
};

/// Table 3-7 of the Unicode Standard: neither overlong forms, nor surrogates, nor anything above U+10FFFF.
Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  size_t at = 0;
  while (at < held_.size()) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(held_[at + i]); };
    const Lead lead = lead_of(byte(0));
    const size_t there = std::min(lead.length, held_.size() - at);
    size_t good = std::min<size_t>(lead.length, 1);
    while (good >= 1 && good < there && byte(good) >= (good == 1 ? lead.least : 0x80) &&
           byte(good) <= (good == 1 ? lead.most : 0xBF)) {
      ++good;
    }
    if (good == lead.length && good > 0) {
      out.append(held_, at, good);
      at += good;
    } else if (good == held_.size() - at) {
      break;  // the beginning of a character
    } else {
      out += kReplacement;
      at += std::max<size_t>(good, 1);
    }
  }
  held_.erase(0, at);
  return out;
}

std::string Utf8Stream::finish() { return std::exchange(held_, "").empty() ? "" : std::string(kReplacement); }

StopStream::StopStream(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const auto& stop : stops_) {
    if (stop.empty()) fail("stop: a stop string is empty, expected at least one character");
    Utf8Stream stream;
    if (stream.push(stop) + stream.finish() != stop) fail("stop: a stop string is not UTF-8");
  }
}

std::string StopStream::push(std::string_view text) {
  if (stopped()) return "";
  size_t matched = 0;
  for (const char byte : text) {
    held_ += byte;
    for (const auto& stop : stops_) {
      if (stop.size() > matched && held_.ends_with(stop)) {
        matched_ = stop;
        matched = stop.size();
      }
    }
    if (stopped()) {
      held_.resize(held_.size() - matched);
      return std::exchange(held_, "");
    }
  }
  size_t keep = 0;
  for (const auto& stop : stops_) {
    for (size_t size = std::min(stop.size() - 1, held_.size()); size > keep; --size) {
      if (held_.ends_with(std::string_view(stop).substr(0, size))) keep = size;
    }
  }
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopStream::finish() { return std::exchange(held_, ""); }

}  // namespace lineal
