// What happens to a text before its words are merged: added tokens, normalizers, pre-tokenizers.
// Names, options and results are those of the tokenizers library's tokenizer.json.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/pattern.h"

namespace lineal {

/// What \w is in the tokenizers library, for within [].
constexpr const char* kWordClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";

/// Throws Error when a text has grown to more than 64 KiB and 256 times its size.
void check_growth(size_t size, size_t from);

/// Text -> text.
using Normalizer = std::function<std::string(std::string)>;

/// Every match of the pattern becomes `content`; bytes that are no UTF-8 stay.
Normalizer replace(Pattern pattern, std::string content);

/// Without the white space at its ends.
Normalizer strip(bool left, bool right);

using PieceSink = std::function<void(std::string_view piece)>;
/// A text in pieces, in order; without empty ones.
using PreTokenizer = std::function<void(std::string_view text, const PieceSink& sink)>;

/// What becomes of the matches that Split finds.
enum class Behavior { isolated, removed, contiguous, merged_with_previous, merged_with_next };

/// Cuts a text at the pattern's matches; with `invert` what lies between them counts as matched. A run of bytes that is
/// no UTF-8 is a piece of its own.
PreTokenizer split(Pattern pattern, Behavior behavior, bool invert);
/// A blank before a text that has none, if `add_prefix_space`; words as GPT-2 has them, if `use_regex`.
PreTokenizer byte_level(bool add_prefix_space, bool use_regex);
/// `replacement` for blanks, before the text too if `prepend`, and a piece from each one on if `split`.
PreTokenizer metaspace(const std::string& replacement, bool prepend, bool split);
/// A piece before every U+2581 that follows another character.
PreTokenizer before_blanks();
/// Pieces of pieces.
PreTokenizer sequence(std::vector<PreTokenizer> steps);
/// Bytes as the characters that stand for them, and back.
PreTokenizer to_byte_characters();
PreTokenizer from_byte_characters();

/// A token found in the text as it is, before any pre-tokenizer.
struct AddedToken {
  std::string content;
  int64_t id = 0;
  bool single_word = false;  // only where no letter, digit or mark touches it
  bool lstrip = false;       // takes the blanks before it
  bool rstrip = false;       // and those after it
  bool normalized = true;    // is found in the normalized text, itself normalized
  bool special = false;
};

/// Finds tokens in a text: the leftmost first, of those the longest.
class AddedTokens {
 public:
  /// A later one that equals an earlier is never found.
  void add(const AddedToken& token, std::string_view content);
  /// The text between tokens, with -1, and tokens, in order; without empty texts.
  void split(std::string_view text, const std::function<void(std::string_view text, int64_t id)>& sink) const;

 private:
  size_t match(std::string_view text, size_t at, const AddedToken*& token) const;

  std::unordered_map<uint64_t, uint32_t> next_;       // of a trie: (node, byte) -> node
  std::unordered_map<uint32_t, AddedToken> tokens_;   // by node
  std::vector<bool> first_ = std::vector<bool>(256);  // bytes that tokens begin with
  uint32_t nodes_ = 1;
};

}  // namespace lineal
