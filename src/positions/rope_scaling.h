// Rotary frequencies for texts longer than those a model was trained on; formulas in rope_scaling.cc.
#pragma once

#include "positions/position.h"
#include "positions/rope.h"

namespace lineal {

/// For heads of size K; each throws Error for fields that it cannot do with.
Frequencies plain_frequencies(const PositionConfig& config, int64_t K);
Frequencies linear_frequencies(const PositionConfig& config, int64_t K);
Frequencies ntk_frequencies(const PositionConfig& config, int64_t K);
Frequencies yarn_frequencies(const PositionConfig& config, int64_t K);
Frequencies ntk_by_parts_frequencies(const PositionConfig& config, int64_t K);
Frequencies llama3_frequencies(const PositionConfig& config, int64_t K);
/// In a text of `length` tokens.
Frequencies dynamic_ntk_frequencies(const PositionConfig& config, int64_t K, int64_t length);

}  // namespace lineal
