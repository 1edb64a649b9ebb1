// lineal list: everything that can be chosen by name.
#include <iomanip>
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

struct Section {
  const char* title;
  Json items;  // name, help and what else there is to say
};

template <class Spec>
Json items() {
  Json list = Json::array();
  for (const Spec* spec : all<Spec>()) {
    Json item = {{"name", spec->name}, {"help", spec->help}};
    if constexpr (std::is_same_v<Spec, MixerSpec>) {
      item["causal"] = spec->causal;
      item["constant_state"] = spec->constant_state;
      item["fields"] = spec->config()->values();
    }
    list.push_back(item);
  }
  return list;
}

/// One column of names for all sections.
void print(const std::vector<Section>& sections) {
  size_t width = 0;
  for (const Section& section : sections) {
    for (const Json& item : section.items) width = std::max(width, item["name"].get<std::string>().size());
  }
  for (const Section& section : sections) {
    std::string title = section.title;
    std::replace(title.begin(), title.end(), '_', ' ');
    std::cout << title << "\n";
    for (const Json& item : section.items) {
      std::cout << "  " << std::left << std::setw(static_cast<int>(width) + 2) << item["name"].get<std::string>()
                << item["help"].get<std::string>() << "\n";
    }
  }
}

int run_list(const std::vector<std::string>& args) {
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
  const std::vector<Section> sections = {
      {"mixers", items<MixerSpec>()},          {"positions", items<PositionSpec>()},
      {"objectives", items<ObjectiveSpec>()},  {"tokenizers", items<TokenizerSpec>()},
      {"model_families", items<FamilySpec>()}, {"commands", items<CommandSpec>()}};
  if (!json) {
    print(sections);
    return 0;
  }
  Json all_kinds = Json::object();
  for (const Section& section : sections) all_kinds[section.title] = section.items;
  std::cout << all_kinds.dump() << "\n";
  return 0;
}

}  // namespace

extern const CommandSpec list_spec;
const CommandSpec list_spec = {
    .name = "list",
    .help = "mixers, positions, objectives, tokenizers, model families, commands; list MIXER: its fields",
    .run = run_list};

}  // namespace lineal
