// What a mixer costs at a length: time to train, prefill and decode, memory, state.
#pragma once

#include <string>

#include "backbones/layer_plan.h"

namespace lineal {

struct MixerCell {
  std::vector<Layer> layers;  // x + mixer(x), one after another; no norms, no feed-forward parts
  int64_t B = 1, T = 256, D = 256;
  double budget = 2;  // seconds for each of the three times
  bool prefill = true, train = true;
};

/// Measures in this process: {"state_bytes", "prefill", "prefill_bytes", "decode", "train", "train_bytes"}. Times in
/// seconds: train a forward and backward pass of B x T tokens, prefill a forward pass without gradients, decode one
/// token after those T. Bytes are peaks over what the process held before. Decoding is left out for mixers that look
/// ahead.
Json measure(const MixerCell& cell);

}  // namespace lineal
