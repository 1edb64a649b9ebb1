// tokenizer.json, the tokenizers library's file, and GPT-2's vocab.json with merges.txt.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/bpe.h"
#include "data/pre_tokenizer.h"

namespace lineal {

/// Tokens -> bytes.
struct TokenDecoder {
  bool byte_level = false;                                        // characters stand for bytes
  bool byte_fallback = false;                                     // <0x0A> is a byte
  std::vector<std::pair<std::string, std::string>> replacements;  // in a token, one after another
  std::string strip;                                              // removed at most `strip_count` times where the
  int64_t strip_count = 0;                                        // text begins

  std::string bytes(const std::string& token) const;
};

struct TokenizerParts {
  std::vector<Normalizer> normalizers;
  PreTokenizer first, later;  // of the text before the first added token, and after it
  BpeModel model;
  TokenDecoder decoder;
  std::vector<AddedToken> added;
  std::string first_token;  // that a single text is put behind, by the post-processor; "": none
};

/// Reads what a tokenizer.json says of encoding and decoding. What it says of truncation and padding is passed over,
/// and of post-processing all but the token that a text is put behind: they shape the input of one call of one model,
/// where Tokenizer::special tells what surrounds a document. Throws Error naming `who`, the field, what was found and
/// what is supported. Memory is bounded by a multiple of the file's size.
TokenizerParts read_tokenizer_json(std::string_view bytes, const std::string& who);

/// The folder's vocab.json, merges.txt, and if they are there added_tokens.json and what tokenizer_config.json says of
/// added tokens, add_prefix_space and tokenizer_class (Qwen2's has words of its own, all others GPT-2's).
TokenizerParts read_vocab_and_merges(const std::filesystem::path& folder);

/// The strings that an object of the file names, {"content": ...} too, and numbers, as text: what
/// tokenizer_config.json, special_tokens_map.json and config.json hold. Empty without the file.
std::vector<std::pair<std::string, std::string>> read_names(const std::filesystem::path& file);

}  // namespace lineal
