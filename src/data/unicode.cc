#include "data/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/config.h"
#include "core/error.h"

namespace lineal {
namespace {

using Points = std::vector<utf8proc_int32_t>;

struct Range {
  utf8proc_int32_t first, last;
};
/// Characters of later versions than Unicode 9 that decompose, compose or have a combining class, in order.
constexpr Range kNewer[] = {
    {0x558, 0x558},     {0x58B, 0x58C},     {0x5C8, 0x5C9},     {0x7FD, 0x7FD},     {0x897, 0x89F},
    {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},
    {0x1715, 0x1715},   {0x1ABF, 0x1AF0},   {0x1DF6, 0x1DFA},   {0x209D, 0x209F},   {0x32FF, 0x32FF},
    {0xA7F1, 0xA7F4},   {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x105C9, 0x105C9}, {0x105D2, 0x105D2},
    {0x105DA, 0x105DA}, {0x105E4, 0x105E4}, {0x10781, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BF},
    {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10ECB, 0x10ECF}, {0x10EF0, 0x10EFB},
    {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x11382, 0x11385}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x11391}, {0x113B8, 0x113B8},
    {0x113BB, 0x113BB}, {0x113C2, 0x113C2}, {0x113C5, 0x113C5}, {0x113C7, 0x113C9}, {0x113CE, 0x113D0},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938},
    {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
    {0x1611E, 0x16129}, {0x1612F, 0x1612F}, {0x16D63, 0x16D63}, {0x16D67, 0x16D6A}, {0x16FF0, 0x16FF1},
    {0x1B123, 0x1B126}, {0x1CCD6, 0x1CCF9}, {0x1D127, 0x1D128}, {0x1D250, 0x1D252}, {0x1D25B, 0x1D25C},
    {0x1D25F, 0x1D25F}, {0x1D280, 0x1D281}, {0x1D6A6, 0x1D6A6}, {0x1DF95, 0x1DF95}, {0x1DFCD, 0x1DFFF},
    {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
    {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF}, {0x1E6E3, 0x1E6E3}, {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF},
    {0x1E6F5, 0x1E6F5}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

bool is_newer(utf8proc_int32_t point) {
  const auto* range = std::lower_bound(std::begin(kNewer), std::end(kNewer), point,
                                       [](const Range& candidate, auto wanted) { return candidate.last < wanted; });
  return range != std::end(kNewer) && range->first <= point;
}

int combining_class(utf8proc_int32_t point) { return utf8proc_get_property(point)->combining_class; }

/// Orders marks, composes, and appends the UTF-8 of characters of Unicode 9 that are decomposed.
void finish(Points& points, bool compose, std::string& to) {
  for (auto at = points.begin(); at != points.end();) {
    const auto starter = [](utf8proc_int32_t point) { return combining_class(point) == 0; };
    const auto begin = std::find_if_not(at, points.end(), starter);
    const auto end = std::find_if(begin, points.end(), starter);
    std::stable_sort(begin, end, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    at = end;
  }
  auto size = static_cast<utf8proc_ssize_t>(points.size());
  if (compose) {
    size = utf8proc_normalize_utf32(points.data(), size,
                                    static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  }
  for (utf8proc_ssize_t i = 0; i < size; ++i) append_utf8(to, static_cast<char32_t>(points[static_cast<size_t>(i)]));
  points.clear();
}

void decompose(utf8proc_int32_t point, utf8proc_option_t options, Points& to) {
  std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition has 18
  int boundary = 0;
  const auto count =
      utf8proc_decompose_char(point, parts.data(), static_cast<utf8proc_ssize_t>(parts.size()), options, &boundary);
  if (count < 0 || count > static_cast<utf8proc_ssize_t>(parts.size())) {
    fail("unicode: cannot decompose character ", point, ": ", utf8proc_errmsg(count));
  }
  to.insert(to.end(), parts.begin(), parts.begin() + count);
}

/// Calls `character` for each character and `other` for each byte that is none.
template <class Character, class Other>
void for_each(std::string_view text, const Character& character, const Other& other) {
  for (size_t at = 0; at < text.size();) {
    const size_t size = character_size(text, at);
    if (size > 0) {
      character(code_point(text.substr(at, size)));
    } else {
      other(text[at]);
    }
    at += std::max<size_t>(size, 1);
  }
}

}  // namespace

size_t character_size(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const size_t left = text.size() - at;
  if (left == 0) return 0;
  if (byte(0) < 0x80) return 1;
  const size_t size = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  if (byte(0) < 0xC2 || byte(0) > 0xF4 || left < size) return 0;
  const unsigned least = byte(0) == 0xE0 ? 0xA0 : byte(0) == 0xF0 ? 0x90 : 0x80;
  const unsigned most = byte(0) == 0xED ? 0x9F : byte(0) == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < least || byte(1) > most) return 0;
  for (size_t i = 2; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return size;
}

size_t valid_end(std::string_view text, size_t at) {
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const size_t size = character_size(text, at);
    if (size == 0) break;
    at += size;
  }
  return at;
}

char32_t code_point(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (first < 0x80) return first;
  char32_t point = first & (0xFF >> (character.size() + 1));
  for (const char next : character.substr(1)) point = point << 6 | (static_cast<unsigned char>(next) & 0x3F);
  return point;
}

void append_utf8(std::string& to, char32_t point) {
  const auto byte = [&](char32_t value) { to += static_cast<char>(value); };
  const auto next = [&](int shift) { byte(0x80 | (point >> shift & 0x3F)); };
  if (point < 0x80) {
    byte(point);
  } else if (point < 0x800) {
    byte(0xC0 | point >> 6), next(0);
  } else if (point < 0x10000) {
    byte(0xE0 | point >> 12), next(6), next(0);
  } else {
    byte(0xF0 | point >> 18), next(12), next(6), next(0);
  }
}

bool is_white_space(char32_t point) {
  return (point >= 0x9 && point <= 0xD) || point == 0x20 || point == 0x85 || point == 0xA0 || point == 0x1680 ||
         (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 || point == 0x202F ||
         point == 0x205F || point == 0x3000;
}

std::string shown(std::string_view text) {
  constexpr size_t kMost = 60;
  if (text.size() <= kMost) return line_of(std::string(text));
  size_t end = kMost;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  std::string line = line_of(std::string(text.substr(0, end)));
  line.insert(line.size() - 1, "...");
  return line;
}

std::string normalize(std::string_view text, NormalForm form) {
  // Characters below U+0300, whose UTF-8 begins with 0xCC, are in NFC, and below U+0080 in every form.
  const unsigned changes = form == NormalForm::nfc ? 0xCC : 0x80;
  const auto plain = [changes](char byte) { return static_cast<unsigned char>(byte) < changes; };
  if (std::all_of(text.begin(), text.end(), plain)) return std::string(text);
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const bool compose = form == NormalForm::nfc || form == NormalForm::nfkc;
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | (compatible ? UTF8PROC_COMPAT : 0));
  std::string result;
  Points points;
  for_each(
      text,
      [&](char32_t character) {
        const auto point = static_cast<utf8proc_int32_t>(character);
        if (is_newer(point)) {
          finish(points, compose, result);
          append_utf8(result, character);
        } else {
          decompose(point, options, points);
        }
      },
      [&](char byte) {
        finish(points, compose, result);
        result += byte;
      });
  finish(points, compose, result);
  return result;
}

std::string lower_case(std::string_view text) {
  constexpr char32_t kDottedI = 0x130;  // the one character whose lower case is two
  std::string result;
  for_each(
      text,
      [&](char32_t point) {
        if (point == kDottedI) {
          result += "i\xcc\x87";
        } else {
          append_utf8(result, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point))));
        }
      },
      [&](char byte) { result += byte; });
  return result;
}

}  // namespace lineal
