// Batches whose rows are documents: a function of (seed, step), as in batches.h.
#pragma once

#include <memory>
#include <mutex>

#include "data/batch.h"
#include "data/split.h"

namespace lineal {

struct DocumentRows {
  int64_t B = 1;        // documents
  int64_t T = 1;        // most tokens of one; what is longer is cut at its end
  int64_t pad = 0;      // fills the shorter
  bool shifted = true;  // targets are one token later; else the inputs themselves
};

/// Row b of step s is document s B + b of the epochs one after another, each with every document once. A batch is as
/// long as its longest row; mask is 0 where a row has ended, and its padding is a document of its own in segments, so
/// that mixers that look ahead do not see it. Rows start a document at their first token.
class DocumentBatches {
 public:
  /// In an order drawn from (seed, epoch). Throws Error for a part without two tokens in a row, B < 1 or T < 1.
  DocumentBatches(Part part, const DocumentRows& rows, uint64_t seed);

  /// Thread-safe.
  Batch at(int64_t step) const;
  /// Step of the part in its own order, once; the last has empty rows for what it lacks.
  Batch in_order(int64_t step) const;
  int64_t steps_in_order() const;
  /// Documents that are cut, of documents().
  int64_t cut() const;
  int64_t documents() const { return static_cast<int64_t>(part_.documents.size()); }

 private:
  template <class Document>
  Batch batch(const Document& document) const;
  int64_t kept(const TokenSpan& document) const;
  std::shared_ptr<const std::vector<int64_t>> order(int64_t epoch) const;

  Part part_;
  DocumentRows rows_;
  uint64_t seed_;
  mutable std::mutex mutex_;
  mutable int64_t epoch_ = -1;
  mutable std::shared_ptr<const std::vector<int64_t>> order_;  // of epoch_
};

}  // namespace lineal
