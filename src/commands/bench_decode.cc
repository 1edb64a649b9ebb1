#include "commands/bench_decode.h"

#include <ATen/Parallel.h>

#include <iomanip>
#include <iostream>

#include "bench/cell.h"
#include "bench/decode.h"
#include "bench/machine.h"
#include "commands/command.h"
#include "core/error.h"

namespace lineal {
namespace {

Json row(const Json& found, int64_t sessions, double copy) {
  const auto value = [&](const char* key) { return found[key].get<double>(); };
  const double seconds = value("seconds"), traffic = value("state_traffic") / seconds;
  return {{"sessions", sessions},
          {"tokens_per_s", static_cast<double>(sessions) / seconds},
          {"us_per_step", 1e6 * seconds},
          {"in_products", value("products") / seconds},
          {"in_kernels", value("kernels") / seconds},
          {"outside", 1 - (value("products") + value("kernels")) / seconds},
          {"state_bytes", found["state_bytes"]},
          {"state_gbytes", traffic / 1e9},
          {"of_copy", traffic / copy}};
}

void print_decoding(const Json& row) {
  const auto number = [&](const char* key, int width, int precision, double scale = 1) {
    std::cout << std::setw(width) << std::setprecision(precision) << scale * row[key].get<double>();
  };
  std::cout << std::fixed;
  number("sessions", 8, 0);
  number("tokens_per_s", 11, 0);
  number("us_per_step", 11, 1);
  number("in_products", 12, 1, 100);
  number("in_kernels", 12, 1, 100);
  number("outside", 11, 1, 100);
  number("state_bytes", 12, 2, 1.0 / (1 << 20));
  number("state_gbytes", 12, 2);
  number("of_copy", 11, 1, 100);
  std::cout << std::endl;
}

}  // namespace

int run_bench_decode(const std::vector<std::string>& args) {
  CLI::App app(
      "a decoding step of a whole model, one token for each of some sessions at once: where its time goes, and the "
      "bytes of state that it moves beside what this machine copies",
      "bench decode");
  LanguageModelConfig model;
  std::string layers = "ttt_linear*4";
  std::vector<int64_t> sessions = {1, 8, 64};
  double seconds = 2;
  bool json = false;
  app.add_option("--layers", layers, "mixers, as in lineal train")->capture_default_str();
  app.add_option("--sessions", sessions, "sessions that step together")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--seconds", seconds, "time for each measurement")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  add_fields(app, model, "bench decode", {"objective"});
  if (!parse(app, args)) return 0;
  model.layers = parse_plan(layers);
  model.validate("bench decode");

  const double copy =
      in_child([&] { return Json(machine(repeat(machine_computations(), seconds)).copy); }).get<double>();
  Json rows = Json::array();
  std::string ran;
  for (const int64_t n : sessions) {
    const Json found = in_child([&] { return measure_decoding(model, n, seconds); });
    if (found.contains("note")) fail("bench decode: ", found["note"].get<std::string>());
    if (rows.empty() && !json) {
      std::cout << found["parameters"] << " parameters, " << layers << ", width " << model.hidden_size << ", "
                << at::get_num_threads() << " threads, float32; copy " << std::fixed << std::setprecision(1)
                << copy / 1e9 << " GB/s; medians\n"
                << "sessions   tokens/s    us/step  % products   % kernels  % outside   state MiB  state GB/s  % of "
                   "copy\n";
    }
    rows.push_back(row(found, n, copy));
    ran = found["ran"].get<std::string>();
    if (!json) print_decoding(rows.back());
  }
  if (json) {
    std::cout << Json{{"copy_gbytes", copy / 1e9}, {"kernels", ran}, {"rows", rows}}.dump() << "\n";
  } else if (!ran.empty()) {
    std::cout << "kernels: " << ran << "\n";
  }
  return 0;
}

}  // namespace lineal
