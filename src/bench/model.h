// What a training step of a whole model costs.
#pragma once

#include "backbones/language_model.h"
#include "train/train_config.h"

namespace lineal {

/// The trainer's own step (forward, backward, clip, AdamW) on random tokens, once to warm up and `steps` times more:
/// {"parameters", "tokens" of a step, "seconds" of each step, "seconds_forward" of as many passes to the loss of one
/// batch without gradients, "peak_bytes" over what the process held before}.
Json measure_training(const LanguageModelConfig& model, const TrainConfig& train, int64_t steps);

}  // namespace lineal
