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
  data.batch = data.validation = [&batch](int64_t) { return batch; };
  data.validation_batches = 1;
  Trainer trainer(std::make_shared<LanguageModel>(model), train, data);
  const auto times = [steps](const std::function<void()>& f) {
    f();
    std::vector<double> seconds;
    for (int64_t i = 0; i < steps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      f();
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return seconds;
  };
  const auto seconds = times([&] { trainer.step(); });
  const auto forward = times([&] { trainer.validation_loss(); });
  return {{"parameters", trainer.model().parameter_count()},
          {"tokens", train.tokens_per_step()},
          {"seconds", seconds},
          {"seconds_forward", forward},
          {"peak_bytes", peak_bytes() - before},
          {"kernels", kernels::summary()}};
}

}  // namespace lineal
