// Distillation: a model learns to do what another one does, its teacher.
#pragma once

#include "objectives/objective.h"

namespace lineal {

struct Distillation {
  std::shared_ptr<LanguageModel> teacher;  // null: none
  int64_t match_steps = 0;                 // first steps, in which every layer learns by itself
};

/// One player, the whole model:
///   match    the mean over layers of |f_l(x_l) - y_l|^2 / |y_l - x_l|^2, where the teacher's layer l makes y_l of x_l
///            and the model's makes f_l(x_l) of the same        (Transformers to SSMs, 2024, section 3.2: hidden
///            states)
///   distill  sum_t mask_t KL(p_t || q_t) / sum_t mask_t, nats per token; p_t what the teacher expects next, q_t the
///   model
///                                                      (Distilling the Knowledge in a Neural Network, 2015, at T = 1)
/// Validation is of the loss of token_player. The teacher's state travels beside the model's, as its child `teacher`.
/// Throws Error when the vocabularies differ or, with match_steps, the widths or the numbers of layers.
std::vector<Player> distillation_player(const std::shared_ptr<LanguageModel>& model, const Distillation& distillation);

}  // namespace lineal
