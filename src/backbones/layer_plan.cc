#include "backbones/layer_plan.h"

#include <cctype>

#include "core/parse.h"
#include "core/registry.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

constexpr int64_t kMostLayers = 4096;

/// Splits at `separator` outside parentheses.
std::vector<std::string> split(const std::string& s, char separator) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : s) {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == separator && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

Layer resolve(const std::string& mixer, const std::vector<std::pair<std::string, Json>>& given, const Json& defaults) {
  auto config = find<MixerSpec>(mixer, "layers").config();
  Json options = Json::object();
  for (const auto& [name, value] : defaults.items()) {
    if (config->has(name)) options[name] = value;
  }
  for (const auto& [name, value] : given) options[name] = value;
  config->read(options, mixer);
  return {mixer, config->write()};
}

/// The JSON value of a field written as text in a plan; text that is no JSON is a string.
Json plan_value(const std::string& value) {
  const Json parsed = Json::parse(value, nullptr, /*allow_exceptions=*/false);
  return parsed.is_discarded() ? Json(value) : parsed;
}

}  // namespace

std::vector<Layer> parse_plan(const std::string& plan, const Json& defaults) {
  std::vector<Layer> layers;
  for (const auto& part : split(plan, ',')) {
    const auto bad = [&](const std::string& why) {
      fail("layers: '", trim(part), "': ", why, "; a plan looks like 'ttt_linear(mini_batch_size=32)*3, attention'");
    };
    auto factors = split(part, '*');
    std::string item = trim(factors[0]);
    int64_t count = 1;
    if (factors.size() > 2) bad("more than one '*'");
    if (factors.size() == 2) {
      const std::string digits = trim(factors[1]);
      const bool number = !digits.empty() && digits.size() < 6 && digits.find_first_not_of("0123456789") == digits.npos;
      count = number ? std::stoll(digits) : 0;
      if (count < 1 || count > kMostLayers) bad(text("count is '", digits, "', expected 1 to ", kMostLayers));
    }
    std::vector<std::pair<std::string, Json>> given;
    if (const auto open = item.find('('); open != std::string::npos) {
      if (item.back() != ')') bad("no closing ')'");
      const std::string inside = item.substr(open + 1, item.size() - open - 2);
      item = trim(item.substr(0, open));
      for (const auto& option : split(inside, ',')) {
        const auto equals = option.find('=');
        if (equals == std::string::npos) bad("'" + trim(option) + "' is not field=value");
        given.emplace_back(trim(option.substr(0, equals)), plan_value(trim(option.substr(equals + 1))));
      }
    }
    if (item.empty()) bad("no mixer");
    const Layer layer = resolve(item, given, defaults);
    layers.insert(layers.end(), static_cast<size_t>(count), layer);
    if (static_cast<int64_t>(layers.size()) > kMostLayers) bad(text("more than ", kMostLayers, " layers"));
  }
  return layers;
}

std::vector<Layer> read_layers(const Json& layers, const Json& defaults) {
  if (layers.is_string()) return parse_plan(layers.get<std::string>(), defaults);
  if (!layers.is_array() || layers.empty()) fail("layers: expected a plan or a list of layers, got ", layers.dump());
  std::vector<Layer> result;
  for (const auto& layer : layers) {
    if (!layer.is_object() || !layer.contains("mixer") || !layer["mixer"].is_string()) {
      fail("layers: expected {\"mixer\": name, ...}, got ", layer.dump());
    }
    std::vector<std::pair<std::string, Json>> given;
    for (const auto& [name, value] : layer.items()) {
      if (name != "mixer") given.emplace_back(name, value);
    }
    result.push_back(resolve(layer["mixer"].get<std::string>(), given, defaults));
  }
  return result;
}

Json write_layers(const std::vector<Layer>& layers) {
  Json list = Json::array();
  for (const auto& layer : layers) {
    Json item = {{"mixer", layer.mixer}};
    item.update(layer.options);
    list.push_back(item);
  }
  return list;
}

}  // namespace lineal
