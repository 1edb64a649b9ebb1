// Masked language modelling: hides some tokens, whose values are then to be found.              (BERT, 2018,
// section 3.1)
#pragma once

#include <vector>

#include "data/batch.h"
#include "data/tokenizer.h"

namespace lineal {

/// What becomes of a chosen token: the mask with probability `masked`, any ordinary token with probability `random`,
/// else itself.
struct MaskingShares {
  double fraction = 0.15;  // of the tokens are chosen
  double masked = 0.8;
  double random = 0.1;
};

/// Chooses tokens as a function of (seed, row) alone: whatever the thread, the batch size or the order of calls.
class Masking {
 public:
  /// Special tokens are neither chosen nor drawn. Throws Error naming `who` and the tokenizer when that has no mask,
  /// and for shares that are none.
  Masking(const std::string& who, const std::string& tokenizer_name, const Tokenizer& tokenizer,
          const MaskingShares& shares);

  /// Of every row b, number `first_row` + b, round(fraction n) of its n ordinary tokens are chosen, at least one:
  /// `inputs` hide them, `targets` are the inputs as they were, and `mask` is 1 at the chosen.
  Batch hide(const Batch& batch, uint64_t seed, int64_t first_row) const;

 private:
  MaskingShares shares_;
  int64_t mask_ = 0;
  std::vector<int64_t> ordinary_;  // ids
  std::vector<bool> is_ordinary_;  // by id
};

}  // namespace lineal
