// Batches as a function of (seed, step): no order of calls, no state to save.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "data/batch.h"
#include "data/split.h"

namespace lineal {

/// Random batches for training.
///   stream   the epochs one after another; epoch e holds every document once, in an order drawn from (seed, e),
///   rotated
///            by a random number of tokens, so that documents are not always cut in the same places
///   chunk c  inputs stream[c T, c T + T), targets one later
///   order    the chunks that begin in one epoch are shuffled among themselves; row b of step s is number s B + b
/// So every token of every epoch is an input exactly once, whatever T is: one longer than the corpus runs through
/// several epochs. Memory: O(B T) for a batch, O(documents + tokens / T) for the orders.
///
/// segments.starts marks the tokens after the first of a row that begin a document or, where an epoch begins, do not
/// follow the token before in its document; undefined when there are none in the batch. mask is 0 where the target is
/// such a token, else 1. Each row is to be read from the initial state.
class Batches {
 public:
  /// Throws Error for a part without two tokens in a row, B < 1 or T < 1.
  Batches(Part part, int64_t B, int64_t T, uint64_t seed);
  ~Batches();

  /// Thread-safe. Throws Error for a negative step or one whose position overflows.
  Batch at(int64_t step) const;

  /// The epoch in which the chunk of the step's first row begins.
  int64_t epoch(int64_t step) const;

 private:
  struct Epoch;
  std::shared_ptr<const Epoch> epoch_at(int64_t epoch) const;

  Part part_;
  int64_t B_, T_, tokens_;
  uint64_t seed_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<const Epoch>> recent_;
};

/// The part from its first token to its last, in order, for evaluation.
///   lane b   predictions [b L, b L + L) of the part's N - 1, L = ceil((N - 1) / B)
///   step i   predictions i T to i T + T of every lane; the last step is shorter
/// A lane goes on where it stopped: carry the state from step to step to read it as one text. segments.starts marks
/// every document start but the one at the beginning of a lane; mask is 0 where the target begins a document and past a
/// lane's end, so that every other token but the first is predicted exactly once.
class SequentialBatches {
 public:
  /// Throws Error for a part without two tokens in a row, B < 1 or T < 1.
  SequentialBatches(Part part, int64_t B, int64_t T);

  int64_t steps() const;
  Batch at(int64_t step) const;

 private:
  Part part_;
  int64_t B_, T_, lane_;
  std::vector<int64_t> begins_;  // of each document in the part's stream, and its end
};

}  // namespace lineal
