// Masked language modelling: find tokens that the inputs hide.                                  (BERT, 2018,
// section 3.1)
//   inputs   15 % of the tokens are chosen: 80 % of them become the mask, 10 % any token, 10 % stay   (data/masking.h)
//   loss     -sum_t chosen_t log p(token_t | inputs) / sum_t chosen_t          nats per chosen token
// Mixers that look ahead see both sides of a hidden token, causal ones what comes before it.
#include "objectives/token_loss.h"

namespace lineal {

extern const ObjectiveSpec masked_lm_spec;
const ObjectiveSpec masked_lm_spec = {.name = "masked_lm",
                                      .help = "find tokens that are masked (BERT, 2018)",
                                      .causal = false,
                                      .masks = true,
                                      .players = token_player};

}  // namespace lineal
