// What a training run is told, apart from the model and the data.
#pragma once

#include "core/config.h"

namespace lineal {

struct TrainConfig : Config {
  std::string objective = "causal_lm";
  int64_t steps = 1000;
  int64_t batch_size = 8;
  int64_t context = 512;
  int64_t segment = 0;
  std::string carry = "detached";
  int64_t accumulate = 1;
  double lr = 1e-3;
  double min_lr = 0;
  std::string schedule = "cosine";
  double warmup = 0.02;
  double decay = 0.2;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  std::string lr_scale;
  double clip = 1.0;
  std::string precision = "float32";
  bool recompute = false;
  int64_t seed = 0;
  double validation = 0.05;
  double test = 0;
  std::string pack = "restart";
  double mask_fraction = 0.15;
  double mask_share = 0.8;
  double random_share = 0.1;
  int64_t match_steps = 0;
  int64_t eval_batches = 16;
  int64_t log_every = 10;
  int64_t eval_every = 100;
  int64_t save_every = 500;
  int64_t keep = 3;

  std::vector<Field> fields() override;
  /// min_lr above lr, warmup and decay above the whole, a batch larger than the machine's memory.
  void validate(const std::string& who) override;

  /// Tokens of one call of the model.
  int64_t segment_length() const { return segment == 0 ? context : std::min(segment, context); }
  int64_t tokens_per_step() const { return batch_size * context * accumulate; }
};

}  // namespace lineal
