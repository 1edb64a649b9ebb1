// Text <-> token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lineal {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Ids run from 0 to vocab_size() - 1.
  virtual int64_t vocab_size() const = 0;
  virtual std::vector<int64_t> encode(std::string_view text) const = 0;
  /// The bytes of these ids; an id out of range is an Error. A piece may end inside a UTF-8 character.
  virtual std::string decode(const std::vector<int64_t>& ids) const = 0;
};

/// A line of the table.
struct TokenizerSpec {
  static constexpr const char* kKind = "tokenizer";
  std::string name;
  std::string help;
  std::shared_ptr<Tokenizer> (*make)();
};

}  // namespace lineal
