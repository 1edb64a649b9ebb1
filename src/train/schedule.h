// The learning rate as a function of the step alone.
#pragma once

#include <cstdint>

#include "train/train_config.h"

namespace lineal {

/// The learning rate of step s = 0 .. steps - 1, with w = ceil(warmup steps), d = ceil(decay steps):
///   s < w      lr (s + 1) / w
///   constant   lr
///   cosine     min_lr + (lr - min_lr) (1 + cos(pi p)) / 2,  p = (s - w) / (steps - 1 - w)
///   wsd        lr, and over the last d steps lr + (min_lr - lr) (s - (steps - d) + 1) / d
double learning_rate(const TrainConfig& config, int64_t step);

}  // namespace lineal
