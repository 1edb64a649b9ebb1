#include "interop/convert.h"

#include <ATen/ATen.h>

#include <map>

#include "backbones/model_files.h"
#include "core/error.h"

namespace lineal {

std::vector<Layer> layers_in_place(const LanguageModel& model, const std::string& plan) {
  const auto& old = model.config().layers;
  const size_t count = parse_plan(plan).size();
  if (count != old.size()) {
    fail("convert: the plan has ", count, " layers, expected as many as the model, ", old.size());
  }
  std::vector<Layer> layers;
  for (size_t i = 0; i < count; ++i) layers.push_back(parse_plan(plan, old[i].options)[i]);
  return layers;
}

Conversion convert(const LanguageModel& from, const std::vector<Layer>& layers) {
  LanguageModelConfig config = from.config();
  config.layers = layers;
  Conversion result{.model = std::make_shared<LanguageModel>(config), .drawn = {}, .unused = {}};
  const auto old = named_tensors(from);
  std::map<std::string, Tensor> given(old.begin(), old.end());
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : named_tensors(*result.model)) {
    const auto found = given.find(name);
    if (found == given.end()) {
      result.drawn.push_back(name);
      continue;
    }
    if (found->second.sizes() != tensor.sizes()) {
      fail("convert: tensor ", name, " is ", found->second.sizes(), " in the model, the new layers ask for ",
           tensor.sizes());
    }
    tensor.copy_(found->second);
    given.erase(found);
  }
  for (const auto& [name, _] : old) {
    if (given.count(name) > 0) result.unused.push_back(name);
  }
  return result;
}

}  // namespace lineal
