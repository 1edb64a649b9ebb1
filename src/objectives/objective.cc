#include "objectives/objective.h"

namespace lineal {

std::vector<std::pair<std::string, Tensor>> mixer_losses(const LanguageModel& model) {
  std::vector<std::pair<std::string, Tensor>> result;
  for (size_t i = 0; i < model.blocks().size(); ++i) {
    for (const auto& [name, loss] : model.blocks()[i]->mixer().losses) {
      result.emplace_back("layers." + std::to_string(i) + "." + name, loss);
    }
  }
  return result;
}

Player whole_model(const std::string& name, LanguageModel& model) {
  std::map<const void*, Mixer::Pace> paces;  // by parameter
  for (const auto& block : model.blocks()) {
    for (const auto& item : block->mixer().named_parameters()) {
      if (const auto pace = block->mixer().pace(item.key())) paces.emplace(item.value().unsafeGetTensorImpl(), *pace);
    }
  }
  Player player{.name = name};
  for (const auto& item : model.named_parameters()) {
    player.parameters.emplace_back(item.key(), item.value());
    const auto pace = paces.find(item.value().unsafeGetTensorImpl());
    if (pace != paces.end()) player.paces.emplace(item.key(), pace->second);
  }
  return player;
}

}  // namespace lineal
