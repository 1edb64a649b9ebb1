// Training, validation and test parts of a store: whole documents, chosen by a hash of their text.
#pragma once

#include <memory>
#include <vector>

#include "data/token_store.h"

namespace lineal {

/// Some documents of a store, in its order.
struct Part {
  std::shared_ptr<const TokenStore> store;
  std::vector<TokenSpan> documents;
  int64_t tokens() const;
};

struct Split {
  Part train;
  Part validation;
  Part test;
};

/// A document is in the validation part when hash(its text, seed) < fraction * 2^64: whatever else the store holds, and
/// equal texts together. When that leaves a part without a document of two tokens, the one nearest to the threshold
/// changes sides; when the store has only one such, it is cut and its last `fraction` is the validation part.
/// `fraction` 0 means no validation part. Documents whose hash lies in the next `test` * 2^64 are the test part. Throws
/// Error unless 0 <= fraction < 1 and 0 <= test < 1 - fraction, when there are too few tokens to split, or when `test`
/// is above 0 and no document falls into that part.
Split split(std::shared_ptr<const TokenStore> store, double fraction, uint64_t seed, double test = 0);

}  // namespace lineal
