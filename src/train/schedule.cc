#include "train/schedule.h"

#include <cmath>
#include <numbers>

namespace lineal {

double learning_rate(const TrainConfig& config, int64_t step) {
  const auto steps = static_cast<double>(config.steps), s = static_cast<double>(step);
  const double warmup = std::ceil(config.warmup * steps), decay = std::ceil(config.decay * steps);
  if (s < warmup) return config.lr * (s + 1) / warmup;
  const double fall = config.min_lr - config.lr;
  if (config.schedule == "cosine") {
    const double length = steps - 1 - warmup;
    const double progress = length > 0 ? std::min((s - warmup) / length, 1.0) : 1;
    return config.min_lr - fall * (1 + std::cos(std::numbers::pi * progress)) / 2;
  }
  if (config.schedule == "wsd" && s >= steps - decay) {
    return config.lr + fall * std::min((s - (steps - decay) + 1) / decay, 1.0);
  }
  return config.lr;
}

}  // namespace lineal
