#include "bench/repeat.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>

namespace lineal {
namespace {

constexpr int kRepetitions = 7;

/// Keeps the times and prints nothing.
class Collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration || run.iterations == 0) continue;
      times[run.run_name.function_name].push_back(run.real_accumulated_time / static_cast<double>(run.iterations));
    }
  }
  std::map<std::string, std::vector<double>> times;  // seconds, by name
};

void initialize() {
  static const bool done = [] {
    std::string name = "lineal", interleave = "--benchmark_enable_random_interleaving=true";
    std::array<char*, 3> argv = {name.data(), interleave.data(), nullptr};
    int argc = 2;
    benchmark::Initialize(&argc, argv.data());
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

std::vector<RunTime> repeat(const std::vector<Repeated>& computations, double seconds,
                            const std::function<void(const std::string& name, double fraction)>& progress) {
  initialize();
  const auto start = std::chrono::steady_clock::now();
  const auto tell = [&](const std::string& name) {
    constexpr double kSlack = 1.4;  // finding how many runs fill the time takes some too
    const std::chrono::duration<double> gone = std::chrono::steady_clock::now() - start;
    const double all = kSlack * seconds * static_cast<double>(computations.size());
    if (progress) progress(name, std::min(gone.count() / all, 0.99));
  };
  for (const auto& computation : computations) {  // what one throws finds none registered
    tell(computation.name);
    computation.run();
  }
  for (const auto& computation : computations) {
    const auto loop = [&computation, &tell](benchmark::State& state) {
      tell(computation.name);
      for ([[maybe_unused]] auto _ : state) computation.run();
    };
    benchmark::RegisterBenchmark(computation.name.c_str(), loop)
        ->MinTime(seconds / kRepetitions)
        ->Repetitions(kRepetitions)
        ->UseRealTime();
  }
  Collector collector;
  benchmark::RunSpecifiedBenchmarks(&collector);
  benchmark::ClearRegisteredBenchmarks();
  std::vector<RunTime> result;
  for (const auto& computation : computations) {
    auto& times = collector.times.at(computation.name);
    std::sort(times.begin(), times.end());
    result.push_back({times[times.size() / 2], times.front(), times.back()});
  }
  return result;
}

}  // namespace lineal
