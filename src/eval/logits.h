// Logits of given token ids, for comparing with other programs.
#pragma once

#include <filesystem>

#include "backbones/language_model.h"

namespace lineal {

/// Tokens whose logits for B rows take 16 MiB at most, one at least: what the head is applied to at a time.
int64_t tokens_per_head(const LanguageModel& model, int64_t B);

/// `in`: a safetensors file with input_ids int64 [B, T]. `out`: one with logits float32 [B, T, N], every row read from
/// the initial state in chunks of `chunk` tokens; atomic, and in memory that does not grow with T but for the ids and
/// the state. Throws Error naming `in` for a tensor that is missing, of another type or shape, or has ids outside the
/// vocabulary, before `out` is touched.
void write_logits(LanguageModel& model, const std::filesystem::path& in, const std::filesystem::path& out,
                  int64_t chunk);

}  // namespace lineal
