// lineal hippo: a signal remembered in the state of a HiPPO system, and read back from it.
#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>
#include <iostream>

#include "commands/command.h"
#include "commands/output.h"
#include "core/error.h"
#include "core/file.h"
#include "core/parse.h"
#include "mixers/online_hippo.h"

namespace lineal {
namespace {

struct HippoConfig : Config {
  std::string measure = "legs";
  int64_t order = 64;
  std::string discretization = "zoh";
  double window = 0;
  int64_t length = 1000;
  double cycles = 10;
  int64_t tones = 8;
  int64_t seed = 0;

  std::vector<Field> fields() override {
    return {
        {"measure", &measure, one_of(measure_names()),
         "what is approximated: the whole past (legs), or a sliding window of it (legt, fourier)"},
        {"order", &order, between(1, 256), "numbers of state; even for fourier"},
        {"discretization", &discretization, one_of(discretization_names()), "how a step is made of the system"},
        {"window", &window, between(0, 1 << 20), "samples that legt and fourier reach back; 0: as many as there are"},
        {"length", &length, size_range(), "samples of the generated signal"},
        {"cycles", &cycles, between(0, 1 << 20), "its highest frequency, in periods over its length"},
        {"tones", &tones, between(1, 1 << 12), "cosines it is the sum of"},
        {"seed", &seed, between(0, 1LL << 53), "draws its frequencies, amplitudes and phases"},
    };
  }
  void validate(const std::string& who) override {
    if (window > 0 && measure == "legs") {
      fail(who, ": --window ", window, ", but legs reaches back to the start; expected --measure legt or fourier");
    }
    if (measure == "fourier" && order % 2 != 0) {
      fail(who, ": --order ", order, ", but fourier pairs a cosine with a sine; expected an even one");
    }
    if (window > 0 && window < 1) fail(who, ": window is ", window, ", expected at least one sample, or 0");
  }
};

/// Numbers with white space or commas between them.
Tensor read_signal(const std::string& path) {
  std::string content = read_file(path);
  std::replace(content.begin(), content.end(), ',', ' ');
  std::istringstream words(content);
  std::vector<double> numbers;
  for (std::string word; words >> word;) {
    const auto number = parse_double(word);
    if (!number) fail("hippo: ", path, ": '", word, "' is no number, expected numbers with spaces or commas between");
    numbers.push_back(*number);
  }
  if (numbers.empty()) fail("hippo: ", path, " holds no numbers");
  return at::tensor(numbers, at::kDouble);
}

std::string row(const char* format, double a, double b, double c, double d) {
  char line[128];
  std::snprintf(line, sizeof line, format, a, b, c, d);
  return line;
}

/// Flags that say how to generate a signal say nothing about one that is read.
void refuse_beside_file(const CLI::App& app) {
  for (const char* flag : {"--length", "--cycles", "--tones", "--seed"}) {
    if (app.get_option(flag)->count() > 0)
      fail("hippo: ", flag, " is of a generated signal, expected no file beside it");
  }
}

int run_hippo(const std::vector<std::string>& args) {
  CLI::App app(
      "reads a signal sample by sample into a state of --order numbers (HiPPO), then the signal back out of the state: "
      "a "
      "table of time, signal, reconstruction and error, which bench/plot_hippo.py draws. Time is in samples; sample k "
      "lasts from k to k + 1 and is compared at its middle. Without a file the signal is a sum of cosines",
      "hippo");
  HippoConfig config;
  std::string file, out = "hippo.csv";
  bool json = false;
  app.add_option("signal", file, "a file of numbers");
  app.add_option("-o,--output", out, "the table, CSV")->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  add_fields(app, config, "hippo");
  if (!parse(app, args)) return 0;
  config.validate("hippo");
  if (!file.empty()) refuse_beside_file(app);
  check_output("hippo", "--output", out, {file}, "");

  const BandLimited tones =
      BandLimited::random(config.tones, config.cycles, config.length, static_cast<uint64_t>(config.seed));
  const Tensor u = file.empty() ? tones(at::arange(config.length, at::kDouble) + 0.5) : read_signal(file);
  const int64_t length = u.size(0);
  const auto samples = static_cast<double>(length);
  const Measure measure = measure_of(config.measure);
  const Discretization method = discretization_of(config.discretization);
  OnlineHippo memory(measure, config.order, method, config.window > 0 ? config.window : samples);
  for (int64_t k = 0; k < length; ++k) memory.read(u[k].item<double>());

  const auto recalled = static_cast<int64_t>(std::min(samples, std::floor(memory.span())));
  const Tensor time = at::arange(length - recalled, length, at::kDouble) + 0.5, signal = u.slice(0, length - recalled);
  const Tensor reconstruction = memory.recall(samples - time), error = reconstruction - signal;
  if (!error.isfinite().all().item<bool>()) {
    fail("hippo: the state of order ", config.order, " grew without bound by ", config.discretization,
         ", expected --discretization zoh or bilinear, or a smaller --order");
  }
  write_atomic(out, [&](FileWriter& csv) {
    std::string table = "time,signal,reconstruction,error\n";
    for (int64_t k = 0; k < recalled; ++k) {
      table += row("%.1f,%.10g,%.10g,%.10g\n", time[k].item<double>(), signal[k].item<double>(),
                   reconstruction[k].item<double>(), error[k].item<double>());
    }
    csv.write(table.data(), table.size());
  });

  const double rms = error.square().mean().sqrt().item<double>(), largest = error.abs().max().item<double>();
  const bool bounded = file.empty() && measure == Measure::legs && method == Discretization::zoh;
  const double bound = bounded ? legs_error_bound(tones, length, config.order) : INFINITY;
  if (json) {
    Json result = config.write();
    result["samples"] = length;
    result["recalled"] = recalled;
    result["rms_error"] = rms;
    result["largest_error"] = largest;
    if (bounded) result["rms_error_bound"] = bound;
    result["output"] = out;
    std::cout << result.dump() << "\n";
    return 0;
  }
  std::cout << config.measure << " of order " << config.order << ", " << config.discretization << ": read " << length
            << " samples, recalled the last " << recalled << "\n"
            << "error: root mean square " << rms << (bounded ? text(" (at most ", bound, ")") : "") << ", largest "
            << largest << "\n"
            << "wrote " << out << "; .venv/bin/python bench/plot_hippo.py " << out << " draws it\n";
  return 0;
}

}  // namespace

extern const CommandSpec hippo_spec;
const CommandSpec hippo_spec = {
    .name = "hippo", .help = "remember a signal in a HiPPO state and read it back", .run = run_hippo};

}  // namespace lineal
