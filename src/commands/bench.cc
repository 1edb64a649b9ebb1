// lineal bench: what mixers cost against the length of the text; its parts are in the files beside it.
#include "commands/bench.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <iostream>

#include "bench/cell.h"
#include "bench/mixers.h"
#include "commands/columns.h"
#include "commands/progress.h"
#include "core/error.h"
#include "core/registry.h"
#include "core/shapes_only.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

constexpr double kMiB = 1024.0 * 1024;

const std::vector<const CommandSpec*>& parts() {
  static const std::vector<const CommandSpec*> all = {
      &bench_op_spec,      &bench_model_spec,         &bench_decode_spec,
      &bench_machine_spec, &bench_approximation_spec, &bench_propagation_spec};
  return all;
}

struct Options {
  std::vector<std::string> plans;
  std::vector<int64_t> lengths = {256, 1024, 4096, 16384, 32768};
  int64_t B = 1, D = 256;
  double budget = 2;
  bool json = false;
};

constexpr NumberColumn kMixerColumns[] = {
    {"train tok/s", "train_tokens_per_s", "%.0f"},   {"prefill tok/s", "prefill_tokens_per_s", "%.0f"},
    {"decode tok/s", "decode_tokens_per_s", "%.0f"}, {"train MiB", "train_mib", "%.1f"},
    {"prefill MiB", "prefill_mib", "%.1f"},          {"state KiB", "state_kib", "%.1f"},
};

Columns columns_for(const Options& options) {
  std::vector<Cells> known;
  for (const auto& plan : options.plans) known.push_back({plan});
  for (const int64_t length : options.lengths) known.push_back({"", std::to_string(length)});
  return Columns(titles_of({"mixer", "length"}, kMixerColumns), known);
}

Cells cells(const Json& row) {
  const Cells first = {row["mixer"].get<std::string>(), std::to_string(row["length"].get<int64_t>())};
  Cells result = cells_of(first, kMixerColumns, row);
  if (row.contains("note")) result.push_back(row["note"].get<std::string>());
  return result;
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
    if (!row.contains("kernels")) continue;
    const std::string ran = row["kernels"].get<std::string>();
    const std::string line = row["mixer"].get<std::string>() + ": " + (ran.empty() ? "asks for no kernel" : ran);
    if (line != last) std::cout << line << "\n";
    last = line;
  }
}

/// Why passes were left out that would take so many seconds each, as the length before tells; 0: it was not.
std::string left_out(double prefill_seconds, double train_seconds, double budgets) {
  const auto one = [](const char* what, double seconds) { return text(what, formatted(" (%.2g s a pass)", seconds)); };
  const std::string reading = prefill_seconds > 0 ? one("reading", prefill_seconds) : "",
                    training = train_seconds > 0 ? one("training", train_seconds) : "";
  return text("left out: ", reading, reading.empty() || training.empty() ? "" : " and ", training, "; --seconds ",
              formatted("%.2g", std::max(prefill_seconds, train_seconds) / budgets), " admits it");
}

/// One plan at every length. A pass that the length before tells would take over five budgets is left out.
void measure_plan(const std::string& plan, const Options& options, const std::function<void(Json)>& add,
                  const std::function<void(int64_t T)>& begin) {
  constexpr double kBudgets = 5;
  MixerCell cell{.layers = parse_plan(plan), .B = options.B, .D = options.D, .budget = options.budget};
  double train_per_token = 0, prefill_per_token = 0;
  for (const int64_t T : options.lengths) {
    begin(T);
    const auto tokens = static_cast<double>(options.B * T), most = kBudgets * options.budget;
    cell.T = T;
    cell.prefill = prefill_per_token * tokens <= most;
    cell.train = train_per_token * tokens <= most;
    const Json found = cell.prefill || cell.train ? in_child([&] { return measure(cell); }) : Json::object();
    Json row = {{"mixer", plan},
                {"length", T},
                {"hidden_size", options.D},
                {"batch_size", options.B},
                {"threads", at::get_num_threads()}};
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
    } else if (!cell.train || !cell.prefill) {
      const auto seconds = [&](bool is_in, double per_token) { return is_in ? 0 : per_token * tokens; };
      row["note"] = left_out(seconds(cell.prefill, prefill_per_token), seconds(cell.train, train_per_token), kBudgets);
    }
    add(std::move(row));
  }
}

/// The part of that name. Null for what is a mixer; throws for what is neither and is most like a part's name.
const CommandSpec* find_part(const std::string& name) {
  std::vector<std::string> known = names<MixerSpec>();
  if (std::find(known.begin(), known.end(), name) != known.end()) return nullptr;
  const std::string prefix = "bench ";
  for (const CommandSpec* part : parts()) {
    if (prefix + name == part->name) return part;
    known.push_back(part->name.substr(prefix.size()));
  }
  const std::string near = nearest(name, known);
  for (const CommandSpec* part : parts()) {
    if (prefix + near == part->name) fail_unknown("bench", "mixer or part", name, known);
  }
  return nullptr;
}

int run_bench(const std::vector<std::string>& args) {
  if (const CommandSpec* part = args.empty() ? nullptr : find_part(args[0])) {
    return run(*part, {args.begin() + 1, args.end()});
  }
  CLI::App app("tokens per second, memory and state of mixers against length; every cell in a process of its own",
               "bench");
  Options options;
  app.add_option("mixer", options.plans,
                 "mixers, or plans such as 'ttt_linear(mini_batch_size=32)*3'; default: all, a quarter of an hour");
  app.add_option("--lengths", options.lengths, "tokens of a sequence")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--hidden-size", options.D, "width")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--batch-size", options.B, "sequences")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--seconds", options.budget, "time for each measurement")
      ->check(within(0.01, 3600))
      ->capture_default_str();
  app.add_flag("--json", options.json, "for scripts");
  add_compute(app);
  std::string more = "Also, each with its own --help:\n";
  size_t longest = 0;
  for (const CommandSpec* part : parts()) longest = std::max(longest, part->name.size());
  for (const CommandSpec* part : parts()) {
    more += "  lineal " + part->name + std::string(longest + 2 - part->name.size(), ' ') + part->help + "\n";
  }
  app.footer(more);
  if (!parse(app, args)) return 0;
  if (options.plans.empty()) options.plans = names<MixerSpec>();
  for (const auto& plan : options.plans) check_plan(plan, options.D);

  const Columns columns = columns_for(options);
  if (!options.json) {
    std::cout << "width " << options.D << ", batch " << options.B << ", " << counted(at::get_num_threads(), "thread")
              << ", float32; medians; memory: peak of each cell's own process over its start\n"
              << columns.titles() << std::flush;
  }
  ProgressBar bar;
  Json rows = Json::array();
  const auto total = static_cast<double>(options.plans.size() * options.lengths.size());
  for (const auto& plan : options.plans) {
    const auto begin = [&](int64_t T) {
      bar.draw(static_cast<double>(rows.size()), total, text(plan, ", ", counted(T, "token")));
    };
    const auto add = [&](Json row) {
      bar.clear();
      if (!options.json) std::cout << columns.line(cells(row)) << std::flush;
      rows.push_back(std::move(row));
    };
    measure_plan(plan, options, add, begin);
  }
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
