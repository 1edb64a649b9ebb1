// Causal language modelling: predict each token from those before it.
//   loss     -sum_t mask_t log p(target_t | inputs_{<=t}) / sum_t mask_t        nats per token
#include "objectives/token_loss.h"

namespace lineal {

extern const ObjectiveSpec causal_lm_spec;
const ObjectiveSpec causal_lm_spec = {
    .name = "causal_lm", .help = "predict the next token", .causal = true, .players = token_player};

}  // namespace lineal
