#include "interop/load.h"

#include "backbones/model_files.h"
#include "core/registry.h"
#include "core/run_mark.h"
#include "interop/family.h"
#include "interop/published.h"
#include "train/run_folder.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

/// Published families keep their tokenizer in files of fixed names, ours names it.
LanguageModelConfig read_config(const FamilySpec& family, const fs::path& dir) {
  const std::string who = (dir / "config.json").string();
  const Json json = read_model_config(dir);
  LanguageModelConfig config;
  try {
    config = family.read(json, who);
  } catch (const Error& error) {
    const std::string what = error.what();
    if (what.starts_with(who)) throw;
    fail(who, ": ", what);
  }
  if (family.name != "lineal") config.tokenizer = tokenizer_in(dir, config.vocab_size);
  config.validate(who);
  return config;
}

}  // namespace

fs::path model_directory(const fs::path& path) {
  std::error_code error;
  const fs::file_status found = fs::status(path, error);
  if (!fs::status_known(found)) fail("model: cannot read ", path.string(), ": ", error.message());
  if (!fs::exists(found))
    fail("model: ", path.string(), " does not exist, expected a model directory or a run's folder");
  if (!fs::is_directory(found)) fail("model: ", path.string(), " is a file, expected a model directory");
  if (!fs::is_directory(path / "checkpoints", error)) {
    if (fs::exists(path / "config.json", error)) return path;
    fail("model: ", path.string(), " has no config.json, expected a model directory or a run's folder");
  }
  const auto newest = newest_checkpoint(path);
  if (!newest) fail("model: ", path.string(), " is a run without a checkpoint yet");
  return newest->path;
}

const FamilySpec& family_of(const fs::path& dir) {
  const Json json = read_model_config(dir);
  const bool named = json.contains("model_type") && json["model_type"].is_string();
  return find<FamilySpec>(named ? json["model_type"].get<std::string>() : "", (dir / "config.json").string());
}

int64_t heads_of(const LanguageModelConfig& config) {
  return config.layers[0].options.value("num_attention_heads", int64_t{1});
}

LoadedModel load_model(const fs::path& path, const std::string& objective) {
  const fs::path dir = model_directory(path);
  const std::string who = (dir / "config.json").string();
  const FamilySpec& family = family_of(dir);
  LoadedModel loaded;
  LanguageModelConfig config = read_config(family, dir);
  if (!objective.empty()) config.objective = objective;
  if (!config.tokenizer.empty()) loaded.tokenizer = find<TokenizerSpec>(config.tokenizer, who).of_model(dir);
  if (loaded.tokenizer && loaded.tokenizer->vocab_size() > config.vocab_size) {
    fail(who, ": tokenizer ", config.tokenizer, " has ", loaded.tokenizer->vocab_size(), " tokens, vocab_size is ",
         config.vocab_size);
  }
  loaded.model = std::make_shared<LanguageModel>(config, Parameters::empty);
  read_parameters(*loaded.model, family.rules, heads_of(config), read_tensors(dir));
  loaded.model->eval();
  return loaded;
}

std::optional<int64_t> training_length(const fs::path& path) {
  const fs::path dir = model_directory(path), above = fs::absolute(dir).lexically_normal().parent_path();
  const auto whole = [](const Json& json, const char* name) -> std::optional<int64_t> {
    if (!json.is_object() || !json.contains(name) || !json[name].is_number_integer()) return {};
    return json[name].get<int64_t>();
  };
  if (above.filename() == "checkpoints" && is_run(above.parent_path())) {
    const Json run = read_model_config(above.parent_path());
    if (run.contains("train")) return whole(run["train"], "context");
  }
  const Json json = read_model_config(dir);
  for (const char* name : {"max_position_embeddings", "n_positions", "context_length"}) {
    if (const auto length = whole(json, name)) return length;
  }
  return {};
}

Tokenizer& tokenizer_of(const LoadedModel& loaded, const std::string& who, const std::string& instead) {
  if (!loaded.tokenizer) {
    fail(who, ": this model has ", loaded.model->config().vocab_size, " tokens and its config.json names no tokenizer",
         instead.empty() ? ", expected one that reads text" : "; " + instead);
  }
  return *loaded.tokenizer;
}

}  // namespace lineal
