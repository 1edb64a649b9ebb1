#include "data/pre_tokenizer.h"

#include <algorithm>

#include "core/error.h"
#include "data/bpe.h"
#include "data/unicode.h"

namespace lineal {
namespace {

// GPT-2: contractions, words with the blank before them, numbers, anything else, blanks but for the last.
constexpr const char* kWords = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/// Calls `valid` for each stretch of UTF-8 and `invalid` for each run of other bytes.
template <class Valid, class Invalid>
void for_each_stretch(std::string_view text, const Valid& valid, const Invalid& invalid) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = valid_end(text, at);
    if (end > at) valid(text.substr(at, end - at));
    at = end;
    while (at < text.size() && character_size(text, at) == 0) ++at;
    if (at > end) invalid(text.substr(end, at - end));
  }
}

/// Joins matches and what is between them as `behavior` says.
class Joiner {
 public:
  Joiner(std::string_view text, Behavior behavior, const PieceSink& sink)
      : text_(text), behavior_(behavior), sink_(sink) {}

  void add(Span span, bool match) {
    switch (behavior_) {
      case Behavior::isolated:
        return emit(span);
      case Behavior::removed:
        return match ? void() : emit(span);
      case Behavior::contiguous:
        if (waiting_ && match == match_) return void(waiting_->end = span.end);
        flush();
        return wait(span, match);
      case Behavior::merged_with_previous:
        if (waiting_ && match && !match_) {
          emit({waiting_->begin, span.end});
          waiting_.reset();
        } else {
          flush();
          if (match) {
            emit(span);
          } else {
            wait(span, match);
          }
        }
        match_ = match;
        return;
      case Behavior::merged_with_next:
        if (match) {
          flush();
          wait(span, match);
        } else {
          emit({waiting_ ? waiting_->begin : span.begin, span.end});
          waiting_.reset();
        }
    }
  }
  void flush() {
    if (waiting_) emit(*waiting_);
    waiting_.reset();
  }

 private:
  void wait(Span span, bool match) { waiting_ = span, match_ = match; }
  void emit(Span span) {
    if (span.end > span.begin) sink_(text_.substr(span.begin, span.end - span.begin));
  }

  std::string_view text_;
  Behavior behavior_;
  const PieceSink& sink_;
  std::optional<Span> waiting_;
  bool match_ = false;
};

bool is_word(char32_t point) {
  static const Pattern word(text("[", kWordClass, "]"), "added tokens");
  std::string utf8;
  append_utf8(utf8, point);
  return Matches(word, utf8).next().has_value();
}

/// Where the last character of the text begins; its end if that is no UTF-8.
size_t last_character(std::string_view text) {
  for (size_t size = 1; size <= std::min<size_t>(4, text.size()); ++size) {
    if (character_size(text, text.size() - size) == size) return text.size() - size;
  }
  return text.size();
}

bool ends_with(std::string_view text, bool (*is)(char32_t)) {
  const size_t at = last_character(text);
  return at < text.size() && is(code_point(text.substr(at)));
}

bool begins_with(std::string_view text, bool (*is)(char32_t)) {
  const size_t size = character_size(text, 0);
  return size > 0 && is(code_point(text.substr(0, size)));
}

}  // namespace

void check_growth(size_t size, size_t from) {
  constexpr size_t kMostAlways = 1 << 16, kMost = 256;
  if (size > kMostAlways && size / kMost > from) {
    fail("normalizer: ", from, " bytes become ", size, " and more, expected at most ", kMost, " times as many");
  }
}

Normalizer replace(Pattern pattern, std::string content) {
  return [pattern = std::move(pattern), content = std::move(content)](std::string text) {
    std::string result;
    for_each_stretch(
        text,
        [&](std::string_view valid) {
          size_t at = 0;
          Matches matches(pattern, valid);
          while (const auto match = matches.next()) {
            result += valid.substr(at, match->begin - at);
            result += content;
            check_growth(result.size(), text.size());
            at = match->end;
          }
          result += valid.substr(at);
        },
        [&](std::string_view invalid) { result += invalid; });
    return result;
  };
}

Normalizer strip(bool left, bool right) {
  return [left, right](const std::string& text) {
    std::string_view rest = text;
    while (left && begins_with(rest, is_white_space)) rest.remove_prefix(character_size(rest, 0));
    while (right && ends_with(rest, is_white_space)) rest = rest.substr(0, last_character(rest));
    return std::string(rest);
  };
}

PreTokenizer split(Pattern pattern, Behavior behavior, bool invert) {
  return [pattern = std::move(pattern), behavior, invert](std::string_view text, const PieceSink& sink) {
    for_each_stretch(
        text,
        [&](std::string_view valid) {
          Joiner joiner(valid, behavior, sink);
          size_t at = 0;
          Matches matches(pattern, valid);
          while (const auto match = matches.next()) {
            if (match->begin > at) joiner.add({at, match->begin}, invert);
            joiner.add(*match, !invert);
            at = match->end;
          }
          if (at < valid.size()) joiner.add({at, valid.size()}, invert);
          joiner.flush();
        },
        sink);
  };
}

PreTokenizer byte_level(bool add_prefix_space, bool use_regex) {
  PreTokenizer words;
  if (use_regex) words = split(Pattern(kWords, "ByteLevel"), Behavior::isolated, false);
  return [add_prefix_space, words](std::string_view text, const PieceSink& sink) {
    std::string longer;
    if (add_prefix_space && !text.starts_with(' ')) text = longer = " " + std::string(text);
    if (words) {
      words(text, sink);
    } else {
      sink(text);
    }
  };
}

PreTokenizer metaspace(const std::string& replacement, bool prepend, bool is_split) {
  PreTokenizer words;
  if (is_split) words = split(Pattern::literal(replacement, "Metaspace"), Behavior::merged_with_next, false);
  return [replacement, prepend, words](std::string_view text, const PieceSink& sink) {
    std::string replaced;
    for (const char c : text) {
      if (c == ' ') {
        replaced += replacement;
      } else {
        replaced += c;
      }
    }
    if (prepend && !replaced.starts_with(replacement)) replaced.insert(0, replacement);
    if (words) {
      words(replaced, sink);
    } else {
      sink(replaced);
    }
  };
}

PreTokenizer before_blanks() {
  return [](std::string_view text, const PieceSink& sink) {
    constexpr std::string_view kBlank = "\xe2\x96\x81";
    size_t begin = 0, after = 0;  // after: where the blank before this one ends
    for (size_t at = text.find(kBlank); at != text.npos; at = text.find(kBlank, after)) {
      if (at > after) sink(text.substr(begin, at - begin)), begin = at;
      after = at + kBlank.size();
    }
    if (begin < text.size()) sink(text.substr(begin));
  };
}

PreTokenizer sequence(std::vector<PreTokenizer> steps) {
  PreTokenizer all = [](std::string_view text, const PieceSink& sink) { sink(text); };
  if (steps.empty()) return all;
  all = std::move(steps.back());
  for (steps.pop_back(); !steps.empty(); steps.pop_back()) {
    all = [first = std::move(steps.back()), rest = std::move(all)](std::string_view text, const PieceSink& sink) {
      first(text, [&](std::string_view piece) { rest(piece, sink); });
    };
  }
  return all;
}

PreTokenizer to_byte_characters() {
  return [](std::string_view text, const PieceSink& sink) {
    std::string characters;
    for (const char c : text) characters += byte_characters()[static_cast<unsigned char>(c)];
    sink(characters);
  };
}

PreTokenizer from_byte_characters() {
  return [](std::string_view text, const PieceSink& sink) { sink(bytes_of_characters(text).value_or("")); };
}

void AddedTokens::add(const AddedToken& token, std::string_view content) {
  if (content.empty()) return;
  uint32_t node = 0;
  for (const char c : content) {
    const uint64_t edge = uint64_t{node} << 8 | static_cast<unsigned char>(c);
    const auto [found, added] = next_.emplace(edge, nodes_);
    if (added) ++nodes_;
    node = found->second;
  }
  first_[static_cast<unsigned char>(content[0])] = true;
  tokens_.emplace(node, token);
}

/// The bytes of the longest token at text[at], or 0.
size_t AddedTokens::match(std::string_view text, size_t at, const AddedToken*& token) const {
  size_t longest = 0;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto next = next_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (next == next_.end()) break;
    node = next->second;
    if (const auto found = tokens_.find(node); found != tokens_.end()) token = &found->second, longest = i + 1 - at;
  }
  return longest;
}

void AddedTokens::split(std::string_view text,
                        const std::function<void(std::string_view text, int64_t id)>& sink) const {
  size_t done = 0;  // what has been passed on
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    const AddedToken* token = nullptr;
    const size_t size = first_[static_cast<unsigned char>(text[at])] ? match(text, at, token) : 0;
    if (size == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + size;
    at = end;
    if (token->single_word && (ends_with(text.substr(0, begin), is_word) || begins_with(text.substr(end), is_word))) {
      continue;
    }
    if (token->lstrip) {
      while (begin > done && ends_with(text.substr(0, begin), is_white_space)) {
        begin = last_character(text.substr(0, begin));
      }
    }
    if (token->rstrip) {
      while (begins_with(text.substr(end), is_white_space)) end += character_size(text, end);
    }
    if (begin > done) sink(text.substr(done, begin - done), -1);
    sink(text.substr(begin, end - begin), token->id);
    done = end;
  }
  if (done < text.size()) sink(text.substr(done), -1);
}

}  // namespace lineal
