#include <ATen/Parallel.h>

#include <cmath>
#include <iostream>

#include "bench/machine.h"
#include "bench/operations.h"
#include "commands/bench.h"
#include "commands/columns.h"
#include "commands/progress.h"
#include "core/error.h"
#include "kernels/kernels.h"

namespace lineal {
namespace {

std::string in_words(const Machine& machine) {
  return text(counted(at::get_num_threads(), "thread"), ", instructions ", kernels::cpu_instructions(), ": sgemm ",
              std::lround(machine.sgemm / 1e9), " GF/s, bfloat16 gemm ", std::lround(machine.bf16_gemm / 1e9),
              ", tile products in L1 ", std::lround(machine.tiles / 1e9), ", copy ",
              formatted("%.1f", machine.copy / 1e9), " GB/s");
}

/// The sizes that these operations have.
std::string in_words(const OperationSizes& sizes, const std::vector<OperationPass>& passes) {
  const auto has = [&](std::string_view name) {
    return std::any_of(passes.begin(), passes.end(), [&](const auto& pass) { return pass.name.starts_with(name); });
  };
  std::string line = text("B ", sizes.B, " H ", sizes.H, " K ", sizes.K, " T ", sizes.T);
  if (has("ttt")) line += text(" C ", sizes.C);
  if (has("token_loss")) line += text(" N ", sizes.vocabulary);
  if (has("nearest_code") || has("vq_attention")) line += text(" M ", sizes.codes);
  if (has("vq_attention")) line += text(" window ", sizes.window, " read ", sizes.read);
  line += text(", ", sizes.type == c10::kFloat ? "float32" : "bfloat16", "; medians; both: forward and backward");
  const auto steps = [](const OperationPass& pass) { return pass.name.ends_with(" step"); };
  if (std::any_of(passes.begin(), passes.end(), steps))
    line += text("; step: one token of ", counted(sizes.sessions, "session"), ", others in each call");
  return line + "\n";
}

constexpr NumberColumn kOperationColumns[] = {
    {"us/token", "us_per_token", "%.3f"},
    {"least", "us_per_token_least", "%.3f"},
    {"most", "us_per_token_most", "%.3f"},
    {"GF/s", "gflops", "%.1f"},
    {"% of sgemm", "of_sgemm", "%.0f", 100},
    {"% of tiles", "of_tiles", "%.0f", 100},
    {"GB/s", "gbytes", "%.2f"},
    {"% of copy", "of_copy", "%.0f", 100},
};

Json row(const OperationPass& pass, const RunTime& time, const Machine& machine) {
  const auto tokens = static_cast<double>(pass.tokens);
  const double flops = pass.flops / time.median, bytes = pass.bytes / time.median;
  return {{"operation", pass.name},
          {"us_per_token", 1e6 * time.median / tokens},
          {"us_per_token_least", 1e6 * time.least / tokens},
          {"us_per_token_most", 1e6 * time.most / tokens},
          {"gflops", flops / 1e9},
          {"of_sgemm", flops / machine.sgemm},
          {"of_tiles", flops / machine.tiles},
          {"gbytes", bytes / 1e9},
          {"of_copy", bytes / machine.copy}};
}

void print_operations(const Json& rows) {
  std::vector<Cells> lines;
  for (const Json& each : rows) {
    lines.push_back(cells_of({each["operation"].get<std::string>()}, kOperationColumns, each));
  }
  const Columns columns(titles_of({"operation"}, kOperationColumns), lines);
  std::cout << columns.titles();
  for (const Cells& line : lines) std::cout << columns.line(line);
}

void add_seconds(CLI::App& app, double& seconds) {
  app.add_option("--seconds", seconds, "time for each measurement")->check(within(0.001, 3600))->capture_default_str();
}

std::vector<RunTime> timed(const std::vector<Repeated>& computations, double seconds) {
  ProgressBar bar;
  const auto times =
      repeat(computations, seconds, [&](const std::string& name, double fraction) { bar.draw(fraction, 1, name); });
  bar.clear();
  return times;
}

/// "left out: wkv (float32 only)", or nothing.
std::string left_out(const OperationSizes& sizes) {
  std::string result;
  for (const std::string& name : operation_names()) {
    const std::string why = operation_refusal(name, sizes);
    if (!why.empty()) result += text(result.empty() ? "left out: " : ", ", name, " (", why, ")");
  }
  return result;
}

int run_bench_operations(const std::vector<std::string>& args) {
  CLI::App app(
      "time, work and traffic of fused operations, forward, both ways and one step of many sessions in place, beside "
      "what this machine can do at most. Work is what the best known algorithm needs. A copy is one of tensors larger "
      "than the caches: what caches hold, and what reads more than it writes, exceeds it",
      "bench op");
  std::vector<std::string> names;
  OperationSizes sizes;
  std::string precision = "float32", known;
  double seconds = 2;
  bool json = false;
  const auto size = [&](const char* flag, int64_t& to, const char* help) {
    app.add_option(flag, to, help)->check(CLI::Range(1, 1 << 24))->capture_default_str();
  };
  for (const std::string& name : operation_names()) known += (known.empty() ? "" : ", ") + name;
  app.add_option("operation", names, "of " + known + "; default: all, a minute or two");
  size("--batch-size", sizes.B, "sequences");
  size("--heads", sizes.H, "heads; what has none has heads x head size channels");
  size("--head-size", sizes.K, "size of keys and values");
  size("--length", sizes.T, "tokens of a sequence");
  size("--mini-batch-size", sizes.C, "tokens of an inner batch of ttt_linear and ttt_mlp");
  size("--sessions", sizes.sessions, "sessions that step together, one token each");
  size("--vocab-size", sizes.vocabulary, "of token_loss");
  size("--window", sizes.window, "tokens that vq_attention sees one by one; of --length: quadratic attention");
  size("--codes", sizes.codes, "codewords of vq_attention and nearest_code");
  app.add_option("--read", sizes.read,
                 "tokens that vq_attention has read before: the first ones see few, and take less")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--precision", precision, "of queries, keys, values and other rows of tokens; the rest is float32")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  add_seconds(app, seconds);
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;
  sizes.type = precision == "bfloat16" ? c10::kBFloat16 : c10::kFloat;

  const auto passes = operation_passes(names, sizes);
  if (!json) std::cout << in_words(sizes, passes) << std::flush;
  std::vector<Repeated> computations = machine_computations();
  const size_t first = computations.size();
  for (const auto& pass : passes) computations.push_back(pass.call);
  const std::vector<RunTime> times = timed(computations, seconds);
  const Machine ceilings = machine(times);
  Json rows = Json::array();
  for (size_t i = 0; i < passes.size(); ++i) rows.push_back(row(passes[i], times[first + i], ceilings));
  if (json) {
    const Json of_sizes = {{"batch_size", sizes.B},      {"heads", sizes.H},           {"head_size", sizes.K},
                           {"length", sizes.T},          {"sessions", sizes.sessions}, {"window", sizes.window},
                           {"mini_batch_size", sizes.C}, {"codes", sizes.codes},       {"vocab_size", sizes.vocabulary},
                           {"read", sizes.read},         {"precision", precision}};
    std::cout << Json{{"machine", to_json(ceilings)},
                      {"sizes", of_sizes},
                      {"kernels", kernels::summary()},
                      {"operations", rows}}
                     .dump()
              << "\n";
    return 0;
  }
  std::cout << in_words(ceilings) << "\n";
  print_operations(rows);
  if (const std::string without = left_out(sizes); names.empty() && !without.empty()) std::cout << without << "\n";
  std::cout << "kernels: " << kernels::summary() << "\n";
  return 0;
}

int run_bench_machine(const std::vector<std::string>& args) {
  CLI::App app(
      "what this machine can do at most: products, tile products, copies of tensors larger than the caches (bytes read "
      "and written)",
      "bench machine");
  double seconds = 2;
  bool json = false;
  add_seconds(app, seconds);
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;
  const Machine ceilings = machine(timed(machine_computations(), seconds));
  if (json) {
    std::cout << to_json(ceilings).dump() << "\n";
  } else {
    std::cout << in_words(ceilings) << "\n";
  }
  return 0;
}

}  // namespace

const CommandSpec bench_op_spec = {.name = "bench op",
                                   .help = "fused operations by themselves",
                                   .run = run_bench_operations,
                                   .less_memory = kOperationsNeedLess};
const CommandSpec bench_machine_spec = {.name = "bench machine",
                                        .help = "what this machine can do at most",
                                        .run = run_bench_machine,
                                        .less_memory = "less of what else runs on the machine"};

}  // namespace lineal
