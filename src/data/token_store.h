// The corpus as tokens: one memory-mapped file that is built once and reused until its sources change.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/sources.h"
#include "data/tokenizer.h"

namespace lineal {

using at::Tensor;

/// Tokens [begin, end) of a store.
struct TokenSpan {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

/// $XDG_CACHE_HOME/lineal, else ~/.cache/lineal; empty when neither variable is set.
std::filesystem::path default_cache_folder();

struct TokenStoreOptions {
  TextOptions text;
  /// Made when missing; empty keeps the tokens in memory.
  std::filesystem::path cache_folder = default_cache_folder();
  /// Called now and then while tokens are built: bytes of the sources read, and their sum (0 when unknown).
  std::function<void(int64_t read, int64_t total)> progress;
};

/// The tokens of every document, one document after another, each with the tokenizer's tokens of its begin and end.
class TokenStore {
 public:
  /// The store of these paths, from the cache when it has them unchanged, else built: in memory that does not grow with
  /// the corpus when the cache can be written, else in memory as a whole, and uncached() tells why. `tokenizer_id`
  /// names the tokenizer and what it was made from. Errors of find_sources and TextReader pass through.
  static std::shared_ptr<const TokenStore> open(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                                                const std::string& tokenizer_id, const TokenStoreOptions& options = {});
  /// From what is there already: tokens U8 or I32 [N], ends and hashes I64 [documents], as in the cache file.
  TokenStore(Tensor tokens, Tensor ends, Tensor hashes);

  int64_t size() const { return size_; }
  int64_t documents() const { return documents_; }
  TokenSpan document(int64_t index) const { return {index == 0 ? 0 : ends_[index - 1], ends_[index]}; }
  /// A hash of the document's text.
  uint64_t hash(int64_t index) const { return static_cast<uint64_t>(hashes_[index]); }
  /// Sixteen hexadecimal digits that change with the text, length and order of the documents.
  std::string fingerprint() const;
  /// Writes the tokens of `span` to `to`.
  void copy(TokenSpan span, int64_t* to) const;

  /// Whether this store was built just now rather than found in the cache.
  bool built() const { return built_; }
  /// Why the tokens are in memory and not in the cache; empty when they are in the cache.
  const std::string& uncached() const { return uncached_; }

 private:
  Tensor token_tensor_, end_tensor_, hash_tensor_;
  const int64_t* ends_ = nullptr;
  const int64_t* hashes_ = nullptr;
  int64_t size_ = 0;
  int64_t documents_ = 0;
  bool built_ = true;
  std::string uncached_;
};

}  // namespace lineal
