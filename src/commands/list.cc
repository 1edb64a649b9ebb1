// lineal list: everything that can be chosen by name.
#include <iostream>

#include "commands/command.h"
#include "core/registry.h"
#include "data/tokenizer.h"
#include "interop/family.h"
#include "mixers/mixer.h"
#include "objectives/objective.h"
#include "positions/position.h"

namespace lineal {
namespace {

void print_line(const std::string& name, const std::string& help) {
  std::string left = "  " + name;
  left.resize(std::max<size_t>(left.size() + 1, 22), ' ');
  std::cout << left << help << "\n";
}

template <class Spec>
Json section(bool json) {
  Json list = Json::array();
  if (!json) std::cout << Spec::kKind << "s\n";
  for (const Spec* spec : all<Spec>()) {
    Json item = {{"name", spec->name}, {"help", spec->help}};
    if (!json) print_line(spec->name, spec->help);
    if constexpr (std::is_same_v<Spec, MixerSpec>) {
      const auto config = spec->config();
      item["causal"] = spec->causal;
      item["constant_state"] = spec->constant_state;
      item["fields"] = config->values();
    }
    list.push_back(item);
  }
  return list;
}

int run(const std::vector<std::string>& args) {
  CLI::App app("everything that can be chosen by name", "list");
  bool json = false;
  std::string mixer;
  app.add_flag("--json", json, "for scripts");
  app.add_option("mixer", mixer, "a mixer: its fields, defaults and ranges");
  if (!parse(app, args)) return 0;
  if (!mixer.empty()) {
    const MixerSpec& spec = find<MixerSpec>(mixer, "list");
    const auto config = spec.config();
    if (json) {
      std::cout << Json{{"name", spec.name}, {"help", spec.help}, {"fields", config->values()}}.dump() << "\n";
    } else {
      std::cout << spec.name << ": " << spec.help << "\n" << config->help();
    }
    return 0;
  }
  Json all_kinds = Json::object();
  all_kinds["mixers"] = section<MixerSpec>(json);
  all_kinds["positions"] = section<PositionSpec>(json);
  all_kinds["objectives"] = section<ObjectiveSpec>(json);
  all_kinds["tokenizers"] = section<TokenizerSpec>(json);
  all_kinds["model_families"] = section<FamilySpec>(json);
  all_kinds["commands"] = section<CommandSpec>(json);
  if (json) std::cout << all_kinds.dump() << "\n";
  return 0;
}

}  // namespace

extern const CommandSpec list_spec;
const CommandSpec list_spec = {
    .name = "list",
    .help = "mixers, positions, objectives, tokenizers, model families, commands; list MIXER: its fields",
    .run = run};

}  // namespace lineal
