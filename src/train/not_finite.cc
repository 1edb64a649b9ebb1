#include "train/not_finite.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace lineal {
namespace {

/// "row 0, token 5 (id 17)" of the earliest token with a value that is not finite; x [B, T, ...]. "" when there is
/// none.
std::string place(const Tensor& x, const Batch& batch, int64_t from) {
  const Tensor bad = x.isfinite().logical_not().flatten(2).any(2);  // [B, T]
  if (!bad.any().item<bool>()) return "";
  const Tensor first = bad.t().nonzero()[0];
  const auto token = first[0].item<int64_t>(), row = first[1].item<int64_t>();
  return text("row ", row, ", token ", from + token, " (id ", batch.inputs[row][token].item<int64_t>(), ")");
}

}  // namespace

std::string find_not_finite(LanguageModel& model, const Batch& batch, const State& start, int64_t from) {
  at::NoGradGuard no_grad;
  for (const auto& [name, part] : start.named()) {
    if (!part.isfinite().all().item<bool>()) return text("the state ", name, " before token ", from, " is not finite");
  }
  State state = start;
  Tensor x = model.embed(batch.inputs, state, batch.segments);
  if (const auto where = place(x, batch, from); !where.empty()) return "the embedding is not finite at " + where;
  for (size_t i = 0; i < model.blocks().size(); ++i) {
    State& layer = state.child("layers").child(std::to_string(i));
    x = model.blocks()[i]->forward(x, layer, batch.segments);
    if (const auto where = place(x, batch, from); !where.empty()) {
      return text("the output of layer ", i, " (", model.config().layers[i].mixer, ") is not finite at ", where);
    }
  }
  State again = start;
  const Tensor logits = model.forward(batch.inputs, again, batch.segments);
  if (const auto where = place(logits, batch, from); !where.empty()) return "the logits are not finite at " + where;
  return "";
}

}  // namespace lineal
