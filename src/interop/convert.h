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
};

/// The layers of `plan`, as many as the model has; options that it leaves open are those of the layer whose place each
/// takes, where that has them.
std::vector<Layer> layers_in_place(const LanguageModel& model, const std::string& plan);

/// A model with these layers: parameters and buffers that `from` has are copied, the others drawn from the global
/// generator. One of another shape, or another number of layers, is an Error.
Conversion convert(const LanguageModel& from, const std::vector<Layer>& layers);

}  // namespace lineal
