// Documents as tokens.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace lineal {

/// Given some tokens of a document, whether the first of them begins it, and the text they stand for, "" of the end's
/// token alone. Says whether to go on.
using DocumentSink = std::function<bool(std::vector<int64_t> tokens, bool starts_document, std::string_view text)>;

/// The documents of `reader`, each with the tokens of its begin and end where the tokenizer has them.
void read_tokens(TextReader& reader, const Tokenizer& tokenizer, const DocumentSink& sink);

}  // namespace lineal
