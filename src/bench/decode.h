// What a decoding step of a whole model costs, and where its time goes.
#pragma once

#include "backbones/language_model.h"

namespace lineal {

/// LanguageModel::step of `sessions` sessions that are a pool of their own and have read `read` tokens each, for about
/// `seconds`: {"parameters", "seconds" of a step (median), "products" and "kernels": of these, seconds inside
/// LibTorch's matrix products and inside Lineal's kernels, "state_bytes": of the sessions' states at the end,
/// "context": tokens that each has read then, "state_traffic": bytes of states that a step reads, and of those that it
/// changes, written}. Computes in this process.
Json measure_decoding(const LanguageModelConfig& config, int64_t sessions, int64_t read, double seconds);

}  // namespace lineal
