#include "commands/bench_operations.h"

#include <ATen/Parallel.h>

#include <iomanip>
#include <iostream>

#include "bench/machine.h"
#include "bench/operations.h"
#include "commands/command.h"
#include "kernels/kernels.h"

namespace lineal {
namespace {

void print(const Machine& machine) {
  std::cout << std::fixed << std::setprecision(0) << at::get_num_threads() << " threads, instructions "
            << kernels::cpu_instructions() << ": sgemm " << machine.sgemm / 1e9 << " GF/s, bfloat16 gemm "
            << machine.bf16_gemm / 1e9 << ", tile products in L1 " << machine.tiles / 1e9 << ", copy "
            << std::setprecision(1) << machine.copy / 1e9 << " GB/s\n";
}

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

void print_operation(const Json& row) {
  const auto number = [&](const char* key, int width, int precision, double scale = 1) {
    std::cout << std::setw(width) << std::setprecision(precision) << scale * row[key].get<double>();
  };
  std::cout << std::left << std::setw(24) << row["operation"].get<std::string>() << std::right << std::fixed;
  number("us_per_token", 9, 3);
  number("us_per_token_least", 9, 3);
  number("us_per_token_most", 9, 3);
  number("gflops", 9, 1);
  number("of_sgemm", 11, 0, 100);
  number("of_tiles", 11, 0, 100);
  number("gbytes", 9, 2);
  number("of_copy", 10, 0, 100);
  std::cout << "\n";
}

void add_seconds(CLI::App& app, double& seconds) {
  app.add_option("--seconds", seconds, "time for each measurement")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
}

}  // namespace

int run_bench_operations(const std::vector<std::string>& args) {
  CLI::App app(
      "time, work and traffic of fused operations, forward, both ways and one step of many sessions in place, beside "
      "what this machine can do at most. "
      "Work "
      "is what the best known algorithm needs",
      "bench op");
  std::vector<std::string> names;
  OperationSizes sizes;
  double seconds = 2;
  bool json = false;
  const auto size = [&](const char* flag, int64_t& to, const char* help) {
    app.add_option(flag, to, help)->check(CLI::Range(1, 1 << 24))->capture_default_str();
  };
  app.add_option("operation", names, "default: all");
  size("--batch-size", sizes.B, "sequences");
  size("--heads", sizes.H, "heads; of a scan, channels are heads x head size");
  size("--head-size", sizes.K, "size of keys and values");
  size("--length", sizes.T, "tokens of a sequence");
  size("--sessions", sizes.sessions, "sessions that step together, one token each");
  size("--window", sizes.window, "tokens that vq_attention sees one by one; of --length: quadratic attention");
  size("--codes", sizes.codes, "codewords of vq_attention");
  app.add_option("--read", sizes.read,
                 "tokens that vq_attention has read before: the first ones see few, and take less")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  add_seconds(app, seconds);
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;

  const auto passes = operation_passes(names, sizes);
  std::vector<Repeated> computations = machine_computations();
  const size_t first = computations.size();
  for (const auto& pass : passes) computations.push_back(pass.call);
  const std::vector<RunTime> times = repeat(computations, seconds);
  const Machine ceilings = machine(times);
  Json rows = Json::array();
  for (size_t i = 0; i < passes.size(); ++i) rows.push_back(row(passes[i], times[first + i], ceilings));
  if (json) {
    const Json of_sizes = {{"batch_size", sizes.B}, {"heads", sizes.H},           {"head_size", sizes.K},
                           {"length", sizes.T},     {"sessions", sizes.sessions}, {"window", sizes.window},
                           {"codes", sizes.codes}};
    std::cout << Json{{"machine", to_json(ceilings)},
                      {"sizes", of_sizes},
                      {"kernels", kernels::summary()},
                      {"operations", rows}}
                     .dump()
              << "\n";
    return 0;
  }
  std::cout
      << "B " << sizes.B << " H " << sizes.H << " K " << sizes.K << " T " << sizes.T
      << ", float32; medians; both: forward and backward; step: one token of " << sizes.sessions
      << " sessions, of so many that no cache holds their states\n"
      << "operation               us/token    least     most     GF/s  % of sgemm  % of tiles     GB/s % of copy\n";
  for (const Json& each : rows) print_operation(each);
  std::cout << "kernels: " << kernels::summary() << "\n";
  return 0;
}

int run_bench_machine(const std::vector<std::string>& args) {
  CLI::App app("what this machine can do at most: products, tile products, copies", "bench machine");
  double seconds = 2;
  bool json = false;
  add_seconds(app, seconds);
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;
  const Machine ceilings = machine(repeat(machine_computations(), seconds));
  if (json) {
    std::cout << to_json(ceilings).dump() << "\n";
  } else {
    print(ceilings);
  }
  return 0;
}

}  // namespace lineal
