// The loss of a model's token predictions, which objectives over tokens share.
#pragma once

#include "kernels/kernels.h"
#include "objectives/objective.h"

namespace lineal {

/// `kernels::token_loss`, or its reference.
Tensor token_loss(const kernels::TokenLossInput& in);

/// One player, the whole model:
///   loss     -sum_t mask_t log p(target_t) / sum_t mask_t       nats per token that counts
std::vector<Player> token_player(const std::shared_ptr<LanguageModel>& model);

}  // namespace lineal
