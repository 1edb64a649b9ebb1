// Causal language modelling: predict each token from those before it.
//   loss     -sum_t mask_t log p(target_t | inputs_{<=t}) / sum_t mask_t        nats per token
#include <ATen/ATen.h>

#include "kernels/kernels.h"
#include "objectives/objective.h"

namespace lineal {
namespace {

Tensor token_loss_reference(const kernels::TokenLossInput& in) {
  Tensor logits = at::linear(in.hidden, in.head);  // [R, N]
  if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
  return (at::cross_entropy_loss(logits, in.targets, {}, at::Reduction::None) * in.weights).sum();
}

}  // namespace

extern const ObjectiveSpec causal_lm_spec;
const ObjectiveSpec causal_lm_spec = {
    .name = "causal_lm",
    .help = "predict the next token",
    .causal = true,
    .players = [](const std::shared_ptr<LanguageModel>& model) -> std::vector<Player> {
      const auto loss = [model](const Batch& batch, State& state) {
        const Tensor hidden = model->hidden(batch.inputs, state, batch.segments).flatten(0, 1);  // [B * T, D]
        const Tensor mask = batch.mask.flatten();
        const Tensor sum = kernels::use(kernels::token_loss, token_loss_reference,
                                        {hidden, model->head_weight(), batch.targets.flatten(), mask});
        return sum / mask.sum().clamp_min(1);
      };
      Player player{"model", {}, loss, 1, [model] { return mixer_losses(*model); }};
      for (const auto& item : model->named_parameters()) player.parameters.emplace_back(item.key(), item.value());
      return {player};
    },
};

}  // namespace lineal
