// The loss of a model's token predictions, which objectives over tokens share.
#pragma once

#include "objectives/objective.h"

namespace lineal {

/// One player, the whole model:
///   loss     -sum_t mask_t log p(target_t) / sum_t mask_t       nats per token that counts
std::vector<Player> token_player(const std::shared_ptr<LanguageModel>& model);

}  // namespace lineal
