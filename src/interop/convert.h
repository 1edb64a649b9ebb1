// A trained model with other layers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backbones/language_model.h"

namespace lineal {

struct Conversion {
  std::shared_ptr<LanguageModel> model;
  std::vector<std::string> drawn;   // parameters and buffers that only the new model has
  std::vector<std::string> unused;  // those that only the old one had
  std::vector<std::string> lost;    // options of old layers that the new ones lack: "layers.0 sliding_window=128"
};

/// The layers of `plan`, as many as the model has; options that it leaves open are those of the layer whose place each
/// takes, where that has them. What takes the place of attention has its sizes of keys and values, and no rotation
/// where that had none.
std::vector<Layer> layers_in_place(const LanguageModel& model, const std::string& plan);
/// The same for one mixer, such as "ttt_linear(mini_batch_size=32)", in the place of every attention layer; other
/// layers stay. A model without attention is an Error.
std::vector<Layer> layers_for_attention(const LanguageModel& model, const std::string& mixer);

/// A model with these layers: parameters and buffers that `from` has are copied, the others drawn from the global
/// generator. Keys and values of grouped queries are repeated for a mixer that has one of each per head. Another shape,
/// or another number of layers, is an Error.
Conversion convert(const LanguageModel& from, const std::vector<Layer>& layers);

}  // namespace lineal
