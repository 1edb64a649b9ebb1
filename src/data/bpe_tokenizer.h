// A tokenizer of the tokenizers library's, model BPE, from its parts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "data/tokenizer_json.h"

namespace lineal {

/// A file of a model directory.
struct NamedFile {
  std::string name;
  std::string bytes;
};

/// `files`: what the parts were read from, which save() writes. Throws Error naming `who` for parts that do not fit
/// together.
std::shared_ptr<Tokenizer> make_bpe_tokenizer(TokenizerParts parts, const SpecialTokens& special,
                                              std::vector<NamedFile> files, const std::string& who);

}  // namespace lineal
