// One training step after another: the only code that moves parameters.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "objectives/distillation.h"
#include "objectives/objective.h"
#include "train/adamw.h"
#include "train/gradient.h"
#include "train/train_config.h"

namespace lineal {

/// Where batches come from: functions of their number alone, so that a resumed run sees the same.
struct TrainData {
  std::function<Batch(int64_t number)> batch;  // any number >= 0; each row is read from the initial state
  std::function<Batch(int64_t number)> validation;
  int64_t validation_batches = 0;  // 0: no validation; rows of one continue those of the one before
  std::function<void(const std::filesystem::path& dir)> save;  // what belongs beside a model, into its folder
};

struct StepResult {
  double loss = 0;     // mean nats per token, of the first player
  int64_t tokens = 0;  // that the first player read, without what fills rows behind their documents (pack none)
  double lr = 0;
  double grad_norm = 0;                                  // before clipping, the largest over the players
  std::string minimised;                                 // what the loss is of, where a player says so
  std::vector<std::pair<std::string, double>> measured;  // "layers.0.inner_loss_before", when asked for
};

class Trainer {
 public:
  /// Throws Error for an objective that is unknown or refuses one of the model's mixers. With a teacher the model
  /// learns from it instead, its first config.match_steps steps layer by layer.
  Trainer(std::shared_ptr<LanguageModel> model, const TrainConfig& config, TrainData data,
          std::shared_ptr<LanguageModel> teacher = nullptr);

  /// Step number steps_done(): gradients of `accumulate` batches, clip, AdamW. With `measure` the mixers' scalars are
  /// collected, each the mean over the step's calls. A loss or gradient that is not finite is an Error that names the
  /// step and the layer and token, or the parameter; that player's
  /// parameters are then as before the step.
  StepResult step(bool measure = false);
  int64_t steps_done() const { return steps_done_; }
  /// Nats per token over the first eval_batches of the validation part; one that is not finite is an Error like step's.
  double validation_loss();

  LanguageModel& model() { return *model_; }
  const TrainConfig& config() const { return config_; }
  bool has_validation() const { return data_.validation_batches > 0; }

  /// Writes model.safetensors, config.json and optimizer.safetensors (the random generator included) into `dir`.
  void save(const std::filesystem::path& dir) const;
  /// Continues from such a folder as if step `steps_done` had just been made; Error for a file that does not fit.
  void load(const std::filesystem::path& dir, int64_t steps_done);

 private:
  /// `loss` names it in the error when it is not finite.
  SegmentRun segment_run(const std::string& loss) const;
  void collect_measured();

  std::shared_ptr<LanguageModel> model_;
  TrainConfig config_;
  TrainData data_;
  std::vector<Player> players_;
  std::vector<AdamW> optimizers_;
  int64_t batches_per_step_ = 0;
  int64_t steps_done_ = 0;
  std::vector<std::pair<std::string, std::pair<double, int64_t>>> measured_;  // sums and counts
};

}  // namespace lineal
