#include "eval/extrapolation.h"

#include <ATen/ATen.h>

#include <cmath>
#include <functional>

#include "core/error.h"
#include "core/registry.h"
#include "mixers/mixer.h"
#include "positions/position.h"

namespace lineal {
namespace {

/// Whether the mixer's scores are attention's, by its fields.
bool is_attention(const Layer& layer) {
  const auto config = find<MixerSpec>(layer.mixer).config();
  return config->has("position") && config->has("sliding_window");
}

int64_t length_of(const Extrapolation& how) {
  if (how.original_length < 2) {
    fail("position ", how.method, ": the model does not say how many tokens it was trained on, expected ",
         "--original-length, at least 2");
  }
  return how.original_length;
}

int64_t window_of(const Extrapolation& how) { return how.window > 0 ? how.window : length_of(how); }

struct Method {
  const char* name;
  /// Changes the options of attention layer `i` of n.
  void (*change)(Json& options, const Extrapolation& how, int64_t i, int64_t n);
};

void log_n(Json& options, const Extrapolation& how, int64_t /*i*/, int64_t /*n*/) {
  options["log_n"] = true;
  options["original_length"] = length_of(how);
}

void hwfa(Json& options, const Extrapolation& how, int64_t i, int64_t n) {
  if (n < 2) fail("position hwfa: the model has one attention layer, expected windows below a full one");
  if (i + 1 < n) {
    options["sliding_window"] = how.window > 0 ? how.window : (3 * length_of(how) / 4 + n - 2) / (n - 1);
  } else {
    options["position"] = "none";
    log_n(options, how, i, n);
  }
}

constexpr Method kMethods[] = {
    {"window",
     [](Json& options, const Extrapolation& how, int64_t, int64_t) { options["sliding_window"] = window_of(how); }},
    {"sink",
     [](Json& options, const Extrapolation& how, int64_t, int64_t) {
       options["sink_tokens"] = how.sinks;
       options["sliding_window"] = how.window > 0 ? how.window : std::max<int64_t>(1, length_of(how) - how.sinks);
     }},
    {"log_n", log_n},
    {"key_norm", [](Json& options, const Extrapolation&, int64_t, int64_t) { options["key_norm"] = true; }},
    {"hwfa", hwfa},
};

void change_position(Json& options, const std::string& name, const Extrapolation& how) {
  options["position"] = name;
  options["factor"] = how.factor;
  if (how.original_length > 0) options["original_length"] = how.original_length;
  if (!name.ends_with("rerope")) return;
  const int64_t w = how.window > 0 ? how.window : (length_of(how) + 1) / 2;
  options["rerope_window"] = w;
  if (name != "leaky_rerope") return;
  const auto L = static_cast<double>(length_of(how)), beyond = L - static_cast<double>(w);
  if (beyond <= 0) fail("position leaky_rerope: the window is ", w, ", expected less than the original length ", L);
  options["factor"] = std::max(1.0, (how.factor * L - static_cast<double>(w)) / beyond);
}

std::vector<std::string> parts_of(const std::string& method) {
  std::vector<std::string> parts(1);
  for (const char c : method) {
    if (c == '+') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

}  // namespace

std::vector<std::string> extrapolation_methods() {
  std::vector<std::string> list = names<PositionSpec>();
  for (const Method& method : kMethods) list.push_back(method.name);
  return list;
}

bool can_extrapolate(const LanguageModelConfig& config) {
  return std::any_of(config.layers.begin(), config.layers.end(), is_attention);
}

LanguageModelConfig extrapolated(const LanguageModelConfig& config, const Extrapolation& how) {
  const auto known = extrapolation_methods();
  const auto parts = parts_of(how.method);
  for (const auto& part : parts) {
    if (std::find(known.begin(), known.end(), part) == known.end()) fail_unknown("eval", "position", part, known);
  }
  const int64_t n = std::count_if(config.layers.begin(), config.layers.end(), is_attention);
  if (n == 0) {
    fail("position ", how.method, ": the model has no attention layer, expected one whose scores know positions");
  }
  LanguageModelConfig result = config;
  int64_t i = 0;
  for (Layer& layer : result.layers) {
    if (!is_attention(layer)) continue;
    for (const auto& part : parts) {
      const auto* method = std::find_if(std::begin(kMethods), std::end(kMethods),
                                        [&](const Method& candidate) { return part == candidate.name; });
      if (method == std::end(kMethods)) {
        change_position(layer.options, part, how);
      } else {
        method->change(layer.options, how, i, n);
      }
    }
    ++i;
  }
  return result;
}

std::shared_ptr<LanguageModel> extrapolated(const LanguageModel& model, const Extrapolation& how) {
  const LanguageModelConfig config = extrapolated(model.config(), how);
  std::shared_ptr<LanguageModel> result;
  try {
    result = std::make_shared<LanguageModel>(config, Parameters::empty);
  } catch (const Error& error) {
    fail("position ", how.method, ": ", error.what());
  }
  const auto parameters = model.named_parameters(), buffers = model.named_buffers();
  for (auto& item : result->named_parameters()) item.value().set_data(parameters[item.key()].detach());
  for (auto& item : result->named_buffers()) item.value().set_data(buffers[item.key()]);
  return result;
}

}  // namespace lineal
