#include "data/pattern.h"

#include <oniguruma.h>

#include <algorithm>
#include <array>

#include "core/config.h"
#include "core/error.h"
#include "data/unicode.h"

namespace lineal {
namespace {

constexpr unsigned long kMostSteps = 100'000'000;  // of backtracking in a match, a second or so
constexpr size_t kMostSource = 1 << 16;

const OnigUChar* bytes(std::string_view text) { return reinterpret_cast<const OnigUChar*>(text.data()); }

void start_library() {
  static const bool started = [] {
    OnigEncoding encoding = ONIG_ENCODING_UTF8;
    if (const int code = onig_initialize(&encoding, 1); code != ONIG_NORMAL) fail("pattern: Oniguruma fails: ", code);
    onig_set_retry_limit_in_match(kMostSteps);
    return true;
  }();
  static_cast<void>(started);
}

std::string message(int code, OnigErrorInfo* info = nullptr) {
  std::array<OnigUChar, ONIG_MAX_ERROR_MESSAGE_LEN> buffer;
  const int size = onig_error_code_to_str(buffer.data(), code, info);
  return line_of(std::string(buffer.begin(), buffer.begin() + size));
}

}  // namespace

Pattern::Pattern(std::string_view source, const std::string& who) : who_(who) {
  start_library();
  if (source.size() > kMostSource) {
    fail(who, ": a pattern of ", source.size(), " bytes, expected at most ", kMostSource);
  }
  if (valid_end(source, 0) < source.size()) fail(who, ": the pattern is not UTF-8");
  regex_t* regex = nullptr;
  OnigErrorInfo info;
  const int code = onig_new(&regex, bytes(source), bytes(source) + source.size(), ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                            ONIG_SYNTAX_RUBY, &info);
  if (code != ONIG_NORMAL) {
    fail(who, ": ", shown(source), " is no regular expression of Oniguruma's: ", message(code, &info));
  }
  compiled_ = {regex, [](void* pointer) { onig_free(static_cast<regex_t*>(pointer)); }};
}

Pattern Pattern::literal(std::string_view source, const std::string& who) {
  std::string escaped;
  for (const char c : source) {
    const bool word = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (static_cast<unsigned char>(c) < 0x80 && !word) escaped += '\\';
    escaped += c;
  }
  return {escaped, who};
}

Matches::Matches(const Pattern& pattern, std::string_view text)
    : pattern_(pattern),
      text_(text),
      region_(onig_region_new(), [](void* pointer) { onig_region_free(static_cast<OnigRegion*>(pointer), 1); }) {}

std::optional<Span> Matches::next() {
  auto* regex = static_cast<regex_t*>(pattern_.compiled_.get());
  auto* region = static_cast<OnigRegion*>(region_.get());
  const OnigUChar* begin = bytes(text_);
  const OnigUChar* end = begin + text_.size();
  while (from_ <= text_.size()) {
    const int found = onig_search(regex, begin, end, begin + from_, end, region, ONIG_OPTION_NONE);
    if (found == ONIG_MISMATCH) break;
    if (found < 0) {
      fail(pattern_.who_, ": the pattern gives up on a text of ", text_.size(), " bytes: ", message(found));
    }
    const Span match = {static_cast<size_t>(region->beg[0]), static_cast<size_t>(region->end[0])};
    const bool repeated = match.begin == match.end && last_end_ == match.end;
    from_ = repeated ? from_ + std::max<size_t>(character_size(text_, from_), 1) : match.end;
    if (repeated) continue;
    last_end_ = match.end;
    return match;
  }
  from_ = text_.size() + 1;
  return {};
}

}  // namespace lineal
