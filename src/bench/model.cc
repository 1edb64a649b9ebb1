#include "bench/model.h"

#include <ATen/ATen.h>

#include <chrono>

#include "bench/cell.h"
#include "kernels/kernels.h"
#include "train/trainer.h"

namespace lineal {

Json measure_training(const LanguageModelConfig& model, const TrainConfig& train, int64_t steps) {
  const int64_t before = resident_bytes();
  at::manual_seed(static_cast<uint64_t>(train.seed));
  const Tensor tokens = at::randint(model.vocab_size, {train.batch_size, train.context + 1}, at::kLong);
  const Batch batch{tokens.slice(1, 0, -1), tokens.slice(1, 1), at::ones({train.batch_size, train.context}), {}};
  TrainData data;
  data.batch = [&batch](int64_t) { return batch; };
  Trainer trainer(std::make_shared<LanguageModel>(model), train, data);
  trainer.step();
  std::vector<double> seconds;
  for (int64_t i = 0; i < steps; ++i) {
    const auto start = std::chrono::steady_clock::now();
    trainer.step();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return {{"parameters", trainer.model().parameter_count()},
          {"tokens", train.tokens_per_step()},
          {"seconds", seconds},
          {"peak_bytes", peak_bytes() - before},
          {"kernels", kernels::summary()}};
}

}  // namespace lineal
