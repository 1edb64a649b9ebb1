// Attention matrices of any mixer that mixes values linearly, found by passing one-hot values through it.
//                                                        (Rethinking Attention with Performers, 2021, appendix C.4)
//   A_ti, the weight of token i's value in what is mixed for token t: component c of the output of t when the value of
//   token i is e_c and all others are 0. V tokens a pass.
#pragma once

#include <functional>

#include "backbones/language_model.h"

namespace lineal {

/// tokens int64 [B, T] -> [B, H, T, T] of a layer's mixer, each row of tokens read as a document from the initial
/// state; before any norm, gate or projection of what is mixed. Throws Error naming the mixer when that takes no probe
/// (Mixer::probe: its outputs are no linear combinations of values), or for a layer that is not there.
Tensor attention_matrix(LanguageModel& model, const Tensor& tokens, int64_t layer);

/// The same of every layer, one after another: each is given to `use` before the next is computed.
void attention_matrices(LanguageModel& model, const Tensor& tokens,
                        const std::function<void(size_t layer, const Tensor& matrix)>& use);

}  // namespace lineal
