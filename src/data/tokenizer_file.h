// The JSON of a tokenizer: read with bounded memory, and walked with errors that name the way to a part.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/bpe.h"

namespace lineal {

using SortedJson = nlohmann::json;  // sorted: the ordered one is quadratic in the number of names

/// What a file holds, but for model.vocab and model.merges, which go into `model` at once. Throws Error naming `who`
/// where it is not JSON, nests too deep, names a member twice, or holds other vocabularies and merges than these.
SortedJson read_tokenizer_file(std::string_view bytes, const std::string& who, BpeModel& model);

/// A file that is a vocabulary, an object of tokens and ids, into `model`. False where it is no object; throws as
/// above.
bool read_vocabulary_file(std::string_view bytes, const std::string& who, BpeModel& model);

/// "a b", as merges are written in files; `rank` is for errors, which name `who`.
std::pair<std::string, std::string> split_merge(const std::string& line, size_t rank, const std::string& who);
/// Of merges.txt, whose first line says what wrote it.
bool is_version(const std::string& line);

/// A part of the file and the way to it, for errors. What it is of must outlive it.
class TokenizerNode {
 public:
  TokenizerNode(const SortedJson& json, std::string who, std::string path)
      : json_(json), who_(std::move(who)), path_(std::move(path)) {}

  bool is_null() const { return json_.is_null(); }
  const std::string& who() const { return who_; }
  std::string where() const { return path_.empty() ? who_ : who_ + ": " + path_; }
  [[noreturn]] void refuse(const std::string& expected) const;

  /// A member, null where there is none.
  TokenizerNode at(const std::string& name) const;
  std::vector<TokenizerNode> items() const;
  std::vector<std::pair<std::string, TokenizerNode>> members() const;
  std::string string() const;
  bool flag(bool otherwise) const;
  int64_t count(int64_t most) const;
  bool is_zero() const { return json_.is_number() && json_.get<double>() == 0; }
  /// A string, {"content": string}, or a number as text.
  std::string name() const;

 private:
  const SortedJson& json_;
  std::string who_, path_;
};

}  // namespace lineal
