// lineal convert: a trained model with other layers, which take the parameters that they share with the old; or in the
// layout of a published family.
#include <ATen/ATen.h>

#include <iostream>

#include "backbones/model_files.h"
#include "commands/command.h"
#include "core/error.h"
#include "core/registry.h"
#include "interop/convert.h"
#include "interop/load.h"
#include "interop/save.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

void check_new(const fs::path& out) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(out, error)) || (fs::is_directory(out, error) && fs::is_empty(out, error))) return;
  fail("convert: --out ", out.string(), " exists, expected a new name or an empty folder");
}

std::string list_of(const std::vector<std::string>& names) {
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

void print(const char* what, const std::vector<std::string>& names) {
  for (const auto& name : names) std::cout << what << name << "\n";
}

int run_convert(const std::vector<std::string>& args) {
  CLI::App app(
      "writes a model directory. --layers: its layers are those of a plan; --mixer: one mixer in the place of every "
      "attention layer. Every parameter and buffer of the same name is taken from the model, what only the new layers "
      "have is drawn; lineal train --init, with --distill, goes on with them. --to: the layout of a published family, "
      "for other programs",
      "convert");
  std::string model, layers, mixer, out, family = "lineal", dtype = "float32";
  int64_t seed = 0;
  bool json = false;
  app.add_option("-m,--model", model, "model directory or run")->required();
  app.add_option("--layers", layers,
                 "as many mixers as the model has, such as 'performer*4'; options left open are the old layers' where "
                 "those have them");
  app.add_option("--mixer", mixer, "in the place of attention, such as 'ttt_linear' or 'performer(num_features=128)'")
      ->excludes("--layers");
  app.add_option("--to", family, "layout: " + list_of(names<FamilySpec>()))->capture_default_str();
  app.add_option("--dtype", dtype, "numbers: " + list_of(dtype_names()))->capture_default_str();
  app.add_option("-o,--out", out, "model directory to write")->required();
  app.add_option("-s,--seed", seed, "of what is drawn")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 53))
      ->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  if (!parse(app, args)) return 0;
  if (layers.empty() && mixer.empty() && app.count("--to") + app.count("--dtype") == 0) {
    fail("convert: nothing to change, expected --layers PLAN, --mixer MIXER or --to FAMILY");
  }
  check_new(out);

  const fs::path source = model_directory(model);
  const LoadedModel loaded = load_model(source);
  at::manual_seed(static_cast<uint64_t>(seed));
  Conversion found{.model = loaded.model, .drawn = {}, .unused = {}, .lost = {}};
  if (!layers.empty()) found = convert(*loaded.model, layers_in_place(*loaded.model, layers));
  if (!mixer.empty()) found = convert(*loaded.model, layers_for_attention(*loaded.model, mixer));
  save_as(*found.model, family, dtype, out, source);
  if (json) {
    std::cout << Json{{"drawn", found.drawn}, {"unused", found.unused}, {"lost", found.lost}}.dump() << "\n";
    return 0;
  }
  print("drawn   ", found.drawn);
  print("unused  ", found.unused);
  print("lost    ", found.lost);
  const auto all = named_tensors(*found.model).size();
  std::cout << "saved " << out << ": " << all - found.drawn.size() << " of " << all << " tensors taken from " << model
            << "\n";
  return 0;
}

}  // namespace

extern const CommandSpec convert_spec;
const CommandSpec convert_spec = {
    .name = "convert", .help = "a trained model with other layers, or for other programs", .run = run_convert};

}  // namespace lineal
