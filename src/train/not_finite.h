// Where a loss stopped being finite.
#pragma once

#include <string>

#include "backbones/language_model.h"
#include "data/batch.h"

namespace lineal {

/// Runs the model block by block and names the first part, row and token that is not finite: "the output of layer 1
/// (ttt_linear) is not finite at row 0, token 5". `from` is the place of the batch's first token in its context. ""
/// when everything up to the logits is finite.
std::string find_not_finite(LanguageModel& model, const Batch& batch, const State& start, int64_t from);

}  // namespace lineal
