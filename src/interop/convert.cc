#include "interop/convert.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "backbones/model_files.h"
#include "core/error.h"
#include "core/registry.h"

namespace lineal {

namespace {

Json values_of(const Layer& layer) {
  const auto config = find<MixerSpec>(layer.mixer).config();
  config->read(layer.options, layer.mixer);
  return config->values();
}

bool is_rotated(const Json& attention) {
  const auto position = attention["position"].get<std::string>();
  return position != "none" && position != "alibi";
}

/// The old layer's options as they are meant for `mixer` in its place.
Json defaults_for(const std::string& mixer, const Layer& old) {
  Json options = old.options;
  if (old.mixer != "attention" || mixer == old.mixer) return options;
  if (!is_rotated(values_of(old))) options["rope_theta"] = 0;
  options["expand_k"] = options["expand_v"] = 1;
  return options;
}

/// Options of the old layer that change its outputs and that the new one lacks.
std::vector<std::string> lost_options(const Layer& old, const Layer& now) {
  std::vector<std::string> lost;
  if (old.mixer == now.mixer) return lost;
  const Json values = values_of(old), usual = find<MixerSpec>(old.mixer).config()->values();
  const auto has = find<MixerSpec>(now.mixer).config()->names();
  const auto lacks = [&](const std::string& name) { return std::find(has.begin(), has.end(), name) == has.end(); };
  const bool attention = old.mixer == "attention";
  for (const auto& [name, value] : values.items()) {
    const bool kept = attention && (name == "num_key_value_heads" || name == "original_length" || name == "position");
    if (!kept && lacks(name) && value != usual[name]) lost.push_back(name + "=" + line_of(value));
  }
  if (attention) {
    const auto position = values["position"].get<std::string>();
    const bool same = position == "none" || (position == "rope" && !lacks("rope_theta"));
    if (!same && lacks("position")) lost.push_back("position=" + position);
  }
  return lost;
}

/// `old` with each key head as often as `now` has query heads for it; undefined where that is not all they differ in.
Tensor with_heads_repeated(const std::string& name, const Tensor& old, const Tensor& now,
                           const std::vector<Layer>& layers) {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!name.starts_with(text("model.layers.", i, "."))) continue;
    const auto heads = layers[i].options.value("num_key_value_heads", int64_t{0});
    bool of_keys = false;
    for (const char* end : {".k_proj.weight", ".v_proj.weight", ".k_proj.bias", ".v_proj.bias"}) {
      of_keys = of_keys || name.ends_with(end);
    }
    if (!of_keys || heads < 1 || old.size(0) % heads != 0 || now.size(0) % old.size(0) != 0) return {};
    const Tensor repeated = old.unflatten(0, {heads, -1}).repeat_interleave(now.size(0) / old.size(0), 0).flatten(0, 1);
    return repeated.sizes() == now.sizes() ? repeated : Tensor();
  }
  return {};
}

}  // namespace

std::vector<Layer> layers_in_place(const LanguageModel& model, const std::string& plan) {
  const auto& old = model.config().layers;
  const size_t count = parse_plan(plan).size();
  if (count != old.size()) {
    fail("convert: the plan has ", count, " layers, expected as many as the model, ", old.size());
  }
  std::vector<Layer> layers;
  const auto planned = parse_plan(plan);
  for (size_t i = 0; i < count; ++i) {
    layers.push_back(parse_plan(plan, defaults_for(planned[i].mixer, old[i]))[i]);
  }
  return layers;
}

std::vector<Layer> layers_for_attention(const LanguageModel& model, const std::string& mixer) {
  const auto one = parse_plan(mixer);
  if (one.size() != 1) fail("convert: --mixer is '", mixer, "', expected one mixer for all layers");
  std::vector<Layer> layers = model.config().layers;
  bool any = false;
  for (Layer& layer : layers) {
    if (layer.mixer != "attention") continue;
    layer = parse_plan(mixer, defaults_for(one[0].mixer, layer))[0];
    any = true;
  }
  if (!any) fail("convert: this model has no attention to replace, expected --layers");
  return layers;
}

Conversion convert(const LanguageModel& from, const std::vector<Layer>& layers) {
  LanguageModelConfig config = from.config();
  config.layers = layers;
  Conversion result{.model = std::make_shared<LanguageModel>(config), .drawn = {}, .unused = {}, .lost = {}};
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const auto& option : lost_options(from.config().layers.at(i), layers[i])) {
      result.lost.push_back(text("layers.", i, " ", option));
    }
  }
  const auto old = named_tensors(from);
  std::map<std::string, Tensor> given(old.begin(), old.end());
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : named_tensors(*result.model)) {
    const auto found = given.find(name);
    if (found == given.end()) {
      result.drawn.push_back(name);
      continue;
    }
    Tensor given_tensor = found->second;
    if (given_tensor.sizes() != tensor.sizes()) {
      given_tensor = with_heads_repeated(name, given_tensor, tensor, from.config().layers);
    }
    if (!given_tensor.defined()) {
      fail("convert: tensor ", name, " is ", found->second.sizes(), " in the model, the new layers ask for ",
           tensor.sizes());
    }
    tensor.copy_(given_tensor);
    given.erase(found);
  }
  for (const auto& [name, _] : old) {
    if (given.count(name) > 0) result.unused.push_back(name);
  }
  return result;
}

}  // namespace lineal
