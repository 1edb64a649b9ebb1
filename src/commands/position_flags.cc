#include "commands/position_flags.h"

namespace lineal {

void add_position(CLI::App& app, Extrapolation& how) {
  const auto count = CLI::Range(int64_t{0}, int64_t{1} << 40);
  std::string known;
  for (const auto& name : extrapolation_methods()) known += (known.empty() ? "" : ", ") + name;
  app.add_option("--position", how.method,
                 "how attention layers read texts longer than those the model was trained on, without training: " +
                     known + "; + joins several");
  app.add_option("--factor", how.factor, "the longest text over the original length")
      ->check(within(1, 1e9))
      ->capture_default_str();
  app.add_option("--original-length", how.original_length, "tokens of the texts trained on; by default the model's own")
      ->check(count);
  app.add_option("--position-window", how.window,
                 "tokens of window, sink and rerope; by default the original length, and half of it for rerope")
      ->check(count);
  app.add_option("--sinks", how.sinks, "first tokens that sink keeps")->check(count)->capture_default_str();
}

Extrapolation with_length(const Extrapolation& how, const std::string& path) {
  Extrapolation result = how;
  if (result.original_length == 0) result.original_length = training_length(path).value_or(0);
  return result;
}

LoadedModel load_model(const std::string& path, const Extrapolation& how) {
  LoadedModel loaded = load_model(path);
  if (!how.method.empty()) loaded.model = extrapolated(*loaded.model, with_length(how, path));
  return loaded;
}

}  // namespace lineal
