// Text <-> token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/sources.h"

namespace lineal {

/// Ids that stand for no text: a document's first and last token, a token that is hidden, and what follows the shorter
/// documents of a batch.
struct SpecialTokens {
  std::optional<int64_t> begin, end, mask, pad;
  bool before_prompts = true;  // `begin`, which documents always have
  /// What a prompt is put behind, if anything.
  std::optional<int64_t> prompt_begin() const { return before_prompts ? begin : std::nullopt; }
  bool has(int64_t id) const { return begin == id || end == id || mask == id || pad == id; }
};

/// In what unit a loss per token is compared with that of other tokenizers.
enum class Metric { bits_per_byte, bits_per_dimension, word_perplexity };

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Ids run from 0 to vocab_size() - 1.
  virtual int64_t vocab_size() const = 0;
  virtual std::vector<int64_t> encode(std::string_view text) const = 0;
  /// The bytes of these ids, none for special ones; an id out of range is an Error. A piece may end inside a UTF-8
  /// character.
  virtual std::string decode(const std::vector<int64_t>& ids) const = 0;
  virtual SpecialTokens special() const { return {}; }
  /// What it reads where a file's name does not tell.
  virtual Format format() const { return Format::text; }
  virtual Metric metric() const { return Metric::bits_per_byte; }
  /// Changes with the file it was made from; "" without one.
  virtual std::string identity() const { return ""; }
  /// Writes that file into a model directory, as TokenizerSpec::file.
  virtual void save(const std::filesystem::path& /*dir*/) const {}
};

/// A line of the table.
struct TokenizerSpec {
  static constexpr const char* kKind = "tokenizer";
  std::string name;
  std::string help;
  /// Throws Error for a file that is missing or no such tokenizer's.
  std::shared_ptr<Tokenizer> (*from_file)(const std::filesystem::path& file);
  /// Name of its file in a model directory, "." if it looks for one of several; empty: it needs none.
  std::string file = "";

  std::shared_ptr<Tokenizer> make(const std::filesystem::path& path = {}) const { return from_file(path); }
  /// The one of a model directory.
  std::shared_ptr<Tokenizer> of_model(const std::filesystem::path& dir) const {
    return from_file(file.empty() ? std::filesystem::path() : dir / file);
  }
};

}  // namespace lineal
