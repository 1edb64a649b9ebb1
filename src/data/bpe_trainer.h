// Learns a byte-level vocabulary from text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "data/bpe.h"
#include "data/pre_tokenizer.h"

namespace lineal {

/// Byte pair encoding (Sennrich et al. 2016, Algorithm 1): the pair that occurs most often becomes a token, again and
/// again; of equally frequent pairs the one of the smaller ids. Counts change only where the pair occurs. Words are
/// GPT-2's; ids are those of the tokenizers library: the document token, the 256 bytes in the order of their
/// characters, then merges.
class BpeTrainer {
 public:
  /// Part of the text. Words do not reach across parts.
  void read(std::string_view text);
  int64_t words() const { return static_cast<int64_t>(counts_.size()); }

  /// At most `vocabulary` tokens: fewer when no pair occurs twice any more. `document` stands between documents, and
  /// text that holds it is read as such; empty for none. `progress` is given the tokens there are. Throws Error for a
  /// vocabulary that does not hold the bytes, and when nothing was read.
  BpeModel train(int64_t vocabulary, const std::string& document,
                 const std::function<void(int64_t)>& progress = {}) const;

 private:
  PreTokenizer pre_tokenizer_ = byte_level(false, true);
  std::unordered_map<std::string, int64_t> counts_;  // of words
};

/// The tokenizer.json of such a model.
std::string write_tokenizer_json(const BpeModel& model, const std::string& document);

}  // namespace lineal
