#include "train/run.h"

#include <chrono>
#include <numbers>

namespace lineal {
namespace {

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

double restore(Trainer& trainer, RunFolder& run) {
  const auto checkpoint = run.newest();
  const Json last = run.rewind_metrics(checkpoint);
  if (checkpoint) trainer.load(checkpoint->path, checkpoint->step);
  return last.is_object() && last.contains("elapsed") && last["elapsed"].is_number() ? last["elapsed"].get<double>()
                                                                                     : 0;
}

bool train(Trainer& trainer, RunFolder& run, double elapsed, Reporter& reporter, const std::function<bool()>& stop) {
  const TrainConfig& config = trainer.config();
  const Clock clock;
  double logged_at = 0;
  int64_t tokens = 0;  // since then
  const auto save = [&] {
    reporter.saved(run.save(trainer.steps_done(), config.keep, config.save_every,
                            [&](const std::filesystem::path& dir) { trainer.save(dir); }));
  };
  while (trainer.steps_done() < config.steps) {
    const auto due = [&](int64_t step, int64_t every) { return step % every == 0 || step == config.steps; };
    const bool log = due(trainer.steps_done() + 1, config.log_every);
    const Clock step_clock;
    const StepResult result = trainer.step(log);
    const int64_t done = trainer.steps_done();
    tokens += result.tokens;
    reporter.step(done, config.steps, result, static_cast<double>(result.tokens) / step_clock.seconds());
    const bool validate = trainer.has_validation() && due(done, config.eval_every);
    if (log || validate) {
      const double now = clock.seconds();
      Json line = {{"step", done},
                   {"loss", result.loss},
                   {"bits_per_token", result.loss / std::numbers::ln2},
                   {"lr", result.lr},
                   {"grad_norm", result.grad_norm},
                   {"tokens", done * config.tokens_per_step()},
                   {"tokens_per_second", static_cast<double>(tokens) / (now - logged_at)},
                   {"elapsed", elapsed + now}};
      if (validate) {
        const double loss = trainer.validation_loss();
        line["validation_loss"] = loss;
        line["validation_bits_per_token"] = loss / std::numbers::ln2;
      }
      if (!result.minimised.empty()) line["minimised"] = result.minimised;
      for (const auto& [name, value] : result.measured) line[name] = value;
      run.add_metrics(line);
      reporter.metrics(line);
      logged_at = clock.seconds();
      tokens = 0;
    }
    const bool stopping = stop();
    if (due(done, config.save_every) || stopping) save();
    if (stopping) return done == config.steps;
  }
  return true;
}

}  // namespace lineal
