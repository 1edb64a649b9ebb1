// Byte pair encoding: a word begins as symbols, and the pair that was learned first is merged until none is left.
//                                                                 (Gage 1994; Sennrich et al. 2016, Algorithm 1)
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lineal {

/// The characters that stand for bytes in the vocabularies of byte-level models: printable ones for themselves, the
/// others from U+0100 on (GPT-2, Radford et al. 2019).
const std::array<std::string, 256>& byte_characters();
/// A text of such characters as bytes; nothing if another character is in it.
std::optional<std::string> bytes_of_characters(std::string_view text);

/// What a model is made from, as files hold it.
struct BpeModel {
  std::vector<std::pair<std::string, int64_t>> vocabulary;  // tokens and their ids
  std::vector<std::pair<std::string, std::string>> merges;  // earlier ones go first
  std::optional<std::string> unknown;                       // the token of a symbol that the vocabulary lacks
  bool fuse_unknown = false;                                // one for several of them in a row
  bool byte_fallback = false;                               // or one token <0x00> to <0xFF> for each of its bytes
  bool ignore_merges = false;                               // a word that is a token is that token
  bool byte_level = false;                                  // symbols are bytes, else characters
};

class Bpe {
 public:
  /// Throws Error naming `who`: ids that are negative, given twice or far beyond the number of tokens, a token given
  /// twice, merges of or into what the vocabulary lacks. Of a merge given twice the last counts.
  Bpe(const BpeModel& model, const std::string& who);

  /// Appends the tokens of one word. A symbol that the vocabulary lacks is its bytes' tokens, or the unknown token, or,
  /// where the model has neither, nothing. O(n log n) in the word's bytes. Any thread may call it.
  void encode(std::string_view word, std::vector<int64_t>& ids) const;

  /// The token's id, or nothing.
  std::optional<int64_t> find(const std::string& token) const;
  /// The largest id, plus 1.
  int64_t size() const { return size_; }
  /// Whether a word may be cut before every U+2581 that follows another character, since no token has one there.
  bool words_begin_with_blanks() const { return words_begin_with_blanks_; }

 private:
  struct Merge {
    int32_t rank, id;
  };
  /// What a symbol is before any merge: a token, those of its bytes, or unknown.
  struct Initial {
    enum { token, bytes, unknown } kind;
    std::vector<int32_t> ids;
  };

  Initial initial(const std::string& symbol) const;
  std::vector<int32_t> symbols(std::string_view word) const;
  void merge(std::vector<int32_t>& symbols) const;
  void merge_word(std::string_view word, std::vector<int32_t>& ids) const;

  std::string who_;
  std::unordered_map<std::string, int32_t> ids_;    // of tokens, as in the file
  std::unordered_map<std::string, int32_t> words_;  // with ignore_merges: as words, bytes of byte-level models
  std::unordered_map<uint64_t, Merge> merges_;      // by the pair of ids
  std::array<Initial, 256> bytes_;                  // of byte-level models
  std::optional<int32_t> unknown_;
  bool fuse_unknown_, byte_fallback_, ignore_merges_, byte_level_;
  bool words_begin_with_blanks_ = true;
  int64_t size_ = 0;

  struct Cache {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>> words;
  };
  std::unique_ptr<Cache> cache_ = std::make_unique<Cache>();
};

}  // namespace lineal
