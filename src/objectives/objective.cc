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

}  // namespace lineal
