// A training run from where it stands to its last step: steps, metrics, validation, checkpoints.
#pragma once

#include <functional>

#include "train/run_folder.h"
#include "train/trainer.h"

namespace lineal {

/// Told what happens; the command prints it.
class Reporter {
 public:
  virtual ~Reporter() = default;
  /// After each step. `tokens_per_second` of this step.
  virtual void step(int64_t /*done*/, int64_t /*steps*/, const StepResult&, double /*tokens_per_second*/) {}
  /// A line of metrics.jsonl: step, loss, bits_per_token, lr, grad_norm, tokens (what fills rows included),
  /// tokens_per_second (without it), elapsed, validation_loss and validation_bits_per_token when measured, the mixers'
  /// scalars.
  virtual void metrics(const Json& /*line*/) {}
  virtual void saved(const Checkpoint&) {}
};

/// Brings the trainer to the run's newest checkpoint, if it has one, and the metrics to the same step; returns the
/// seconds of training until then.
double restore(Trainer& trainer, RunFolder& run);

/// Trains until the last step, or until `stop` says so after a step; saves in either case. True when all steps are
/// done.
bool train(Trainer& trainer, RunFolder& run, double elapsed, Reporter& reporter, const std::function<bool()>& stop);

}  // namespace lineal
