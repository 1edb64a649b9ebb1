// Where documents start within a call, before which every state restarts, and where rows are filled up.
#pragma once

#include <ATen/core/Tensor.h>

namespace lineal {

using at::Tensor;

struct Segments {
  /// bool [B, T], true at the first token of a document; undefined when no document starts in this call.
  Tensor starts;
  /// bool [B, T], true at tokens that fill up a row behind its text: a document of their own that nobody reads, which
  /// statistics leave out; undefined: none.
  Tensor padding;

  bool none() const { return !starts.defined(); }
  /// Tokens [from, to) of every row; none() when no document starts there, no padding when there is none.
  Segments slice(int64_t from, int64_t to) const;
  /// int64 [B, T]: how many documents have started up to and with each token; 0 is the one the state belongs to.
  Tensor documents(int64_t B, int64_t T, at::Device device) const;
  /// int64 [B, T]: each token's place in its document, when the state has read `position` [B] of the running one.
  Tensor positions(const Tensor& position, int64_t T) const;
};

}  // namespace lineal
