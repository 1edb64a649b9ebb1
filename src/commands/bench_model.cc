#include <ATen/Parallel.h>

#include <cmath>
#include <iostream>

#include "bench/cell.h"
#include "bench/model.h"
#include "commands/bench.h"
#include "commands/columns.h"
#include "commands/progress.h"
#include "core/error.h"

namespace lineal {
namespace {

int run_bench_model(const std::vector<std::string>& args) {
  CLI::App app("seconds of a whole training step: forward, backward, clip, AdamW", "bench model");
  LanguageModelConfig model;
  TrainConfig train;
  std::string layers = "ttt_linear*4";
  int64_t steps = 5;
  bool json = false;
  app.add_option("--layers", layers, "mixers, as in lineal train")->capture_default_str();
  app.add_option("--steps", steps, "timed steps")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  add_fields(app, model, "bench model", {"objective", "tokenizer"});
  const std::vector<std::string> of_a_run = {"steps",      "schedule",     "warmup",     "decay",      "lr",
                                             "min_lr",     "validation",   "log_every",  "eval_every", "save_every",
                                             "keep",       "eval_batches", "test",       "pack",       "mask_fraction",
                                             "mask_share", "random_share", "match_steps"};
  add_fields(app, train, "bench model", of_a_run);
  if (!parse(app, args)) return 0;
  model.layers = parse_plan(layers);
  model.validate("bench model");
  train.steps = steps + 1;
  train.validate("bench model");
  Json result = in_child([&] { return measure_training(model, train, steps); });
  if (result.contains("note")) {
    fail("bench model: ", result["note"].get<std::string>(), "; needs less: ", bench_model_spec.less_memory);
  }
  if (json) {
    result["sizes"] = {{"layers", layers},
                       {"hidden_size", model.hidden_size},
                       {"batch_size", train.batch_size},
                       {"context", train.context},
                       {"precision", train.precision}};
    result["threads"] = at::get_num_threads();
    std::cout << result.dump() << "\n";
    return 0;
  }
  const auto median_of = [&](const char* key) {
    auto seconds = result[key].get<std::vector<double>>();
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  };
  constexpr double kMiB = 1 << 20;
  const double median = median_of("seconds");
  std::cout << result["parameters"] << " parameters, batch " << train.batch_size << " x context " << train.context
            << ", " << counted(at::get_num_threads(), "thread") << ", " << train.precision << ": "
            << formatted("%.4g", median) << " s a step (median of " << steps << "), "
            << std::lround(result["tokens"].get<double>() / median) << " tokens/s, peak "
            << std::lround(result["peak_bytes"].get<double>() / kMiB) << " MiB\n"
            << "forward alone: " << formatted("%.4g", median_of("seconds_forward")) << " s\n";
  if (const auto ran = result["kernels"].get<std::string>(); !ran.empty()) std::cout << "kernels: " << ran << "\n";
  return 0;
}

}  // namespace

const CommandSpec bench_model_spec = {.name = "bench model",
                                      .help = "the training step of a whole model",
                                      .run = run_bench_model,
                                      .less_memory = "a smaller --batch-size or model, or a shorter --context"};

}  // namespace lineal
