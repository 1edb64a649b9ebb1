// lineal convert: a trained model with other layers, which take the parameters that they share with the old.
#include <ATen/ATen.h>

#include <iostream>

#include "backbones/model_files.h"
#include "commands/command.h"
#include "core/error.h"
#include "interop/convert.h"
#include "interop/load.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

void check_new(const fs::path& out) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(out, error)) || (fs::is_directory(out, error) && fs::is_empty(out, error))) return;
  fail("convert: --out ", out.string(), " exists, expected a new name or an empty folder");
}

void print(const char* what, const std::vector<std::string>& names) {
  for (const auto& name : names) std::cout << what << name << "\n";
}

int run(const std::vector<std::string>& args) {
  CLI::App app(
      "writes a model directory whose layers are those of a plan: every parameter and buffer of the same name is taken "
      "from the model, what only the new layers have is drawn. attention's parameters are performer's; lineal train "
      "--init goes on with them",
      "convert");
  std::string model, layers, out;
  int64_t seed = 0;
  bool json = false;
  app.add_option("-m,--model", model, "model directory or run")->required();
  app.add_option("--layers", layers,
                 "as many mixers as the model has, such as 'performer*4'; options left open are the old layers' where "
                 "those have them")
      ->required();
  app.add_option("-o,--out", out, "model directory to write")->required();
  app.add_option("-s,--seed", seed, "of what is drawn")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 53))
      ->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  if (!parse(app, args)) return 0;
  check_new(out);

  const LoadedModel loaded = load_model(model);
  at::manual_seed(static_cast<uint64_t>(seed));
  const Conversion found = convert(*loaded.model, layers_in_place(*loaded.model, layers));
  save_model(*found.model, out);
  if (json) {
    std::cout << Json{{"drawn", found.drawn}, {"unused", found.unused}}.dump() << "\n";
    return 0;
  }
  print("drawn   ", found.drawn);
  print("unused  ", found.unused);
  const auto all = named_tensors(*found.model).size();
  std::cout << "saved " << out << ": " << all - found.drawn.size() << " of " << all << " tensors taken from " << model
            << "\n";
  return 0;
}

}  // namespace

extern const CommandSpec convert_spec;
const CommandSpec convert_spec = {
    .name = "convert", .help = "a trained model with other layers, its parameters kept", .run = run};

}  // namespace lineal
