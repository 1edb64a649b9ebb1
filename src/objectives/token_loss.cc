#include "objectives/token_loss.h"

#include <ATen/ATen.h>

#include "kernels/kernels.h"

namespace lineal {
namespace {

Tensor token_loss_reference(const kernels::TokenLossInput& in) {
  Tensor logits = at::linear(in.hidden, in.head);  // [R, N]
  if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
  return (at::cross_entropy_loss(logits, in.targets, {}, at::Reduction::None) * in.weights).sum();
}

}  // namespace

Tensor token_loss(const kernels::TokenLossInput& in) {
  return kernels::use(kernels::token_loss, token_loss_reference, in);
}

std::vector<Player> token_player(const std::shared_ptr<LanguageModel>& model) {
  const auto loss = [model](const Batch& batch, State& state) {
    const Tensor hidden = model->hidden(batch.inputs, state, batch.segments).flatten(0, 1);  // [B * T, D]
    const Tensor mask = batch.mask.flatten();
    const Tensor sum = token_loss({hidden, model->head_weight(), batch.targets.flatten(), mask});
    return sum / mask.sum().clamp_min(1);
  };
  Player player = whole_model("model", *model);
  player.loss = loss;
  player.extra = [model] { return mixer_losses(*model); };
  return {player};
}

}  // namespace lineal
