#include <ATen/Parallel.h>

#include <iostream>

#include "bench/cell.h"
#include "bench/decode.h"
#include "bench/machine.h"
#include "commands/bench.h"
#include "commands/columns.h"
#include "commands/progress.h"
#include "core/error.h"
#include "core/registry.h"
#include "mixers/mixer.h"

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
          {"context", found["context"]},
          {"state_bytes", found["state_bytes"]},
          {"state_gbytes", traffic / 1e9},
          {"of_copy", traffic / copy}};
}

constexpr NumberColumn kDecodeColumns[] = {
    {"tokens/s", "tokens_per_s", "%.0f"},
    {"us/step", "us_per_step", "%.1f"},
    {"% products", "in_products", "%.1f", 100},
    {"% kernels", "in_kernels", "%.1f", 100},
    {"% outside", "outside", "%.1f", 100},
    {"context", "context", "%.0f"},
    {"state MiB", "state_bytes", "%.2f", 1.0 / (1 << 20)},
    {"state GB/s", "state_gbytes", "%.2f"},
    {"% of copy", "of_copy", "%.1f", 100},
};

int run_bench_decode(const std::vector<std::string>& args) {
  CLI::App app(
      "a decoding step of a whole model, one token for each of some sessions at once: where its time goes, and the "
      "bytes of state that it moves beside what this machine copies. context: tokens that each session has read at the "
      "end; a state that grows with them is measured at all lengths up to there",
      "bench decode");
  LanguageModelConfig model;
  std::string layers = "ttt_linear*4";
  std::vector<int64_t> sessions = {1, 8, 64};
  int64_t read = 0;
  double seconds = 2;
  bool json = false;
  app.add_option("--layers", layers, "mixers, as in lineal train")->capture_default_str();
  app.add_option("--sessions", sessions, "sessions that step together")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--read", read, "tokens that each session has read before")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--seconds", seconds, "time for each measurement")->check(within(0.001, 3600))->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  add_fields(app, model, "bench decode", {"objective", "tokenizer"});
  if (!parse(app, args)) return 0;
  model.layers = parse_plan(layers);
  model.validate("bench decode");
  for (const Layer& layer : model.layers) {
    if (find<MixerSpec>(layer.mixer).causal) continue;
    fail("bench decode: mixer ", layer.mixer, " looks ahead, expected those that go on token by token");
  }

  const Columns columns(titles_of({"sessions"}, kDecodeColumns));
  ProgressBar bar;
  const auto begin = [&](size_t done, const std::string& what) {
    bar.draw(static_cast<double>(done), static_cast<double>(sessions.size()) + 1, what);
  };
  begin(0, "this machine");
  const double copy =
      in_child([&] { return Json(machine(repeat(machine_computations(), seconds)).copy); }).get<double>();
  Json rows = Json::array();
  std::string ran;
  for (const int64_t n : sessions) {
    begin(rows.size() + 1, counted(n, "session"));
    const Json found = in_child([&] { return measure_decoding(model, n, read, seconds); });
    bar.clear();
    if (found.contains("note")) {
      fail("bench decode: ", found["note"].get<std::string>(), "; needs less: ", bench_decode_spec.less_memory);
    }
    if (rows.empty() && !json) {
      std::cout << found["parameters"] << " parameters, " << layers << ", width " << model.hidden_size << ", "
                << counted(at::get_num_threads(), "thread") << ", float32; copy " << formatted("%.1f", copy / 1e9)
                << " GB/s; medians\n"
                << columns.titles();
    }
    rows.push_back(row(found, n, copy));
    ran = found["ran"].get<std::string>();
    if (!json) std::cout << columns.line(cells_of({std::to_string(n)}, kDecodeColumns, rows.back())) << std::flush;
  }
  if (json) {
    const Json sizes = {{"layers", layers}, {"hidden_size", model.hidden_size}, {"read", read}};
    std::cout << Json{{"sizes", sizes},
                      {"threads", at::get_num_threads()},
                      {"copy_gbytes", copy / 1e9},
                      {"kernels", ran},
                      {"rows", rows}}
                     .dump()
              << "\n";
  } else if (!ran.empty()) {
    std::cout << "kernels: " << ran << "\n";
  }
  return 0;
}

}  // namespace

const CommandSpec bench_decode_spec = {.name = "bench decode",
                                       .help = "the decoding step of a whole model for many sessions at once",
                                       .run = run_bench_decode,
                                       .less_memory = "fewer --sessions or a smaller model"};

}  // namespace lineal
