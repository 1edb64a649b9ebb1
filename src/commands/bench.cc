// lineal bench: what mixers cost against the length of the text, and what a model's training step costs; operations by
// themselves are in bench_operations.cc.
#include <ATen/Parallel.h>

#include <iomanip>
#include <iostream>

#include "bench/cell.h"
#include "bench/mixers.h"
#include "bench/model.h"
#include "commands/bench_approximation.h"
#include "commands/bench_decode.h"
#include "commands/bench_operations.h"
#include "commands/command.h"
#include "core/error.h"
#include "core/registry.h"
#include "core/shapes_only.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

constexpr double kMiB = 1024.0 * 1024;

struct Options {
  std::vector<std::string> plans;
  std::vector<int64_t> lengths = {256, 1024, 4096, 16384, 32768};
  int64_t B = 1, D = 256;
  double budget = 2;
  bool json = false;
};

std::string cell_text(const Json& row, const char* key, int precision) {
  std::ostringstream out;
  if (row.contains(key)) {
    out << std::fixed << std::setprecision(precision) << row[key].get<double>();
  } else {
    out << "-";
  }
  return out.str();
}

/// Of the first column, for the longest plan.
int name_width(const std::vector<std::string>& plans) {
  size_t width = 14;
  for (const auto& plan : plans) width = std::max(width, plan.size());
  return static_cast<int>(width) + 2;
}

void print_row(const Json& row, int width) {
  std::cout << std::left << std::setw(width) << row["mixer"].get<std::string>() << std::right << std::setw(7)
            << row["length"].get<int64_t>() << std::setw(12) << cell_text(row, "train_tokens_per_s", 0) << std::setw(13)
            << cell_text(row, "prefill_tokens_per_s", 0) << std::setw(12) << cell_text(row, "decode_tokens_per_s", 0)
            << std::setw(11) << cell_text(row, "train_mib", 1) << std::setw(13) << cell_text(row, "prefill_mib", 1)
            << std::setw(12) << cell_text(row, "state_kib", 1);
  if (row.contains("note")) std::cout << "  " << row["note"].get<std::string>();
  std::cout << std::endl;
}

/// Throws what the plan's mixers throw when they are made.
void check_plan(const std::string& plan, int64_t D) {
  const ShapesOnly shapes;
  for (const Layer& layer : parse_plan(plan)) empty_mixer(layer.mixer, layer.options, D);
}

/// Which kernels served the rows, once for each mixer.
void print_kernels(const Json& rows) {
  std::string last;
  for (const Json& row : rows) {
    const std::string line = row["mixer"].get<std::string>() + ": " + row.value("kernels", "");
    if (!row.value("kernels", "").empty() && line != last) std::cout << line << "\n";
    last = line;
  }
}

/// One plan at every length. A pass that the length before tells would take over five budgets is left out.
void measure_plan(const std::string& plan, const Options& options, Json& rows) {
  MixerCell cell{.layers = parse_plan(plan), .B = options.B, .D = options.D, .budget = options.budget};
  double train_per_token = 0, prefill_per_token = 0;
  for (const int64_t T : options.lengths) {
    const auto tokens = static_cast<double>(options.B * T), most = 5 * options.budget;
    cell.T = T;
    cell.prefill = prefill_per_token * tokens <= most;
    cell.train = train_per_token * tokens <= most;
    const Json found = in_child([&] { return measure(cell); });
    Json row = {{"mixer", plan}, {"length", T}};
    const auto per_second = [&](const char* key, const char* name, double count) {
      if (found.contains(key)) row[name] = count / found[key].get<double>();
    };
    per_second("train", "train_tokens_per_s", tokens);
    per_second("prefill", "prefill_tokens_per_s", tokens);
    per_second("decode", "decode_tokens_per_s", static_cast<double>(options.B));
    if (found.contains("train")) {
      row["train_mib"] = found["train_bytes"].get<double>() / kMiB;
      train_per_token = found["train"].get<double>() / tokens;
    }
    if (found.contains("prefill")) {
      row["prefill_mib"] = found["prefill_bytes"].get<double>() / kMiB;
      row["state_kib"] = found["state_bytes"].get<double>() / 1024;
      prefill_per_token = found["prefill"].get<double>() / tokens;
    }
    if (found.contains("kernels")) row["kernels"] = found["kernels"];
    if (found.contains("note")) {
      row["note"] = found["note"];
    } else if (!cell.train) {
      row["note"] = text("training left out: over ", std::lround(train_per_token * tokens), " s a pass; --seconds ",
                         std::ceil(train_per_token * tokens / 5), " admits it");
    }
    if (!options.json) print_row(row, name_width(options.plans));
    rows.push_back(std::move(row));
  }
}

int run_model(const std::vector<std::string>& args) {
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
  add_fields(app, model, "bench model", {"objective"});
  const std::vector<std::string> of_a_run = {"steps",      "schedule",     "warmup",    "decay",      "lr",
                                             "min_lr",     "validation",   "log_every", "eval_every", "save_every",
                                             "keep",       "eval_batches", "test",      "pack",       "mask_fraction",
                                             "mask_share", "random_share"};
  add_fields(app, train, "bench model", of_a_run);
  if (!parse(app, args)) return 0;
  model.layers = parse_plan(layers);
  model.validate("bench model");
  train.steps = steps + 1;
  train.validate("bench model");
  const Json result = in_child([&] { return measure_training(model, train, steps); });
  if (result.contains("note")) fail("bench model: ", result["note"].get<std::string>());
  if (json) {
    std::cout << result.dump() << "\n";
    return 0;
  }
  const auto median_of = [&](const char* key) {
    auto seconds = result[key].get<std::vector<double>>();
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  };
  const double median = median_of("seconds");
  std::cout << result["parameters"] << " parameters, batch " << train.batch_size << " x context " << train.context
            << ", " << at::get_num_threads() << " threads: " << std::setprecision(4) << median
            << " s a step (median of " << steps << "), " << std::lround(result["tokens"].get<double>() / median)
            << " tokens/s, peak " << std::lround(result["peak_bytes"].get<double>() / kMiB) << " MiB\n"
            << "forward alone: " << median_of("seconds_forward") << " s\n";
  if (const auto ran = result["kernels"].get<std::string>(); !ran.empty()) std::cout << "kernels: " << ran << "\n";
  return 0;
}

int run_bench(const std::vector<std::string>& args) {
  if (!args.empty()) {
    const std::vector<std::string> rest(args.begin() + 1, args.end());
    if (args[0] == "model") return run_model(rest);
    if (args[0] == "decode") return run_bench_decode(rest);
    if (args[0] == "op") return run_bench_operations(rest);
    if (args[0] == "machine") return run_bench_machine(rest);
    if (args[0] == "approximation") return run_bench_approximation(rest);
    if (args[0] == "propagation") return run_bench_propagation(rest);
  }
  CLI::App app(
      "tokens per second, memory and state of mixers against length; every cell in a process of its own. "
      "Also, each with its own --help: lineal bench model, the training step of a whole model; lineal bench "
      "decode, its decoding step for many sessions at once; lineal bench op, fused operations by themselves; lineal "
      "bench machine, what this machine can do at most; lineal bench approximation, the error of random features; "
      "lineal bench propagation, that of a converted model's blocks",
      "bench");
  Options options;
  app.add_option("mixer", options.plans, "mixers, or plans such as 'ttt_linear(mini_batch_size=32)*3'; default: all");
  app.add_option("--lengths", options.lengths, "tokens of a sequence")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--hidden-size", options.D, "width")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--batch-size", options.B, "sequences")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--seconds", options.budget, "time for each measurement")
      ->check(CLI::Range(0.01, 3600.0))
      ->capture_default_str();
  app.add_flag("--json", options.json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;
  if (options.plans.empty()) options.plans = names<MixerSpec>();
  for (const auto& plan : options.plans) check_plan(plan, options.D);

  if (!options.json) {
    std::cout << "width " << options.D << ", batch " << options.B << ", " << at::get_num_threads()
              << " threads, float32; medians; memory: peak of each cell's own process over its start\n"
              << std::left << std::setw(name_width(options.plans)) << "mixer"
              << " length train tok/s prefill tok/s  decode t/s  train MiB  prefill MiB   state KiB\n";
  }
  Json rows = Json::array();
  for (const auto& plan : options.plans) measure_plan(plan, options, rows);
  if (!options.json) print_kernels(rows);
  if (options.json) std::cout << rows.dump() << "\n";
  return 0;
}

}  // namespace

extern const CommandSpec bench_spec;
const CommandSpec bench_spec = {.name = "bench",
                                .help = "tokens per second, memory and state of mixers against length",
                                .run = run_bench,
                                .less_memory = "a smaller --hidden-size or --batch-size, or shorter --lengths"};

}  // namespace lineal
