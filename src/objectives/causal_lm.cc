// Causal language modelling: predict each token from those before it.
//   loss     -sum_t mask_t log p(target_t | inputs_{<=t}) / sum_t mask_t        nats per token
#include <ATen/ATen.h>

#include "objectives/objective.h"

namespace lineal {

extern const ObjectiveSpec causal_lm_spec;
const ObjectiveSpec causal_lm_spec = {
    .name = "causal_lm",
    .help = "predict the next token",
    .causal = true,
    .players = [](const std::shared_ptr<LanguageModel>& model) -> std::vector<Player> {
      const auto loss = [model](const Batch& batch, State& state) {
        Tensor logits = model->forward(batch.inputs, state, batch.segments);  // [B, T, N]
        if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
        const Tensor nats = at::cross_entropy_loss(logits.flatten(0, 1), batch.targets.flatten(), {},
                                                   at::Reduction::None);  // [B * T]
        return (nats * batch.mask.flatten()).sum() / batch.mask.sum().clamp_min(1);
      };
      Player player{"model", {}, loss, 1};
      for (const auto& item : model->named_parameters()) player.parameters.emplace_back(item.key(), item.value());
      return {player};
    },
};

}  // namespace lineal
