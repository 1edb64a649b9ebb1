// Which mixer each layer has: "ttt_linear(mini_batch_size=32)*3, attention".
#pragma once

#include <string>
#include <vector>

#include "core/config.h"

namespace lineal {

/// One layer: a mixer's name and its options, all of them, defaults resolved.
struct Layer {
  std::string mixer;
  Json options;
  bool operator==(const Layer&) const = default;
};

/// plan := layer {"," layer};  layer := mixer ["(" field "=" value {"," field "=" value} ")"] ["*" count].
/// `defaults` fills the fields a mixer has and the plan leaves open; every field is checked.
std::vector<Layer> parse_plan(const std::string& plan, const Json& defaults = Json::object());

/// Layers from config.json: a plan, or a list of {"mixer": name, field: value...}; and back.
std::vector<Layer> read_layers(const Json& layers, const Json& defaults = Json::object());
Json write_layers(const std::vector<Layer>& layers);

}  // namespace lineal
