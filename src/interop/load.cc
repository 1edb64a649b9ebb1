#include "interop/load.h"

#include "backbones/model_files.h"
#include "core/registry.h"
#include "core/run_mark.h"
#include "interop/ttt.h"
#include "train/run_folder.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

struct Family {
  const char* model_type;
  const char* help;
  LanguageModelConfig (*read)(const Json& json, const std::string& who);
};

constexpr Family kFamilies[] = {
    {"lineal", "what lineal train writes", LanguageModelConfig::from_json},
    {"ttt", "TTT-Linear and TTT-MLP language models as published (arXiv 2407.04620)", read_ttt_config},
};

/// A run's folder stands for its newest checkpoint.
fs::path model_directory(const fs::path& path) {
  std::error_code error;
  const fs::file_status found = fs::status(path, error);
  if (!fs::status_known(found)) fail("model: cannot read ", path.string(), ": ", error.message());
  if (!fs::exists(found))
    fail("model: ", path.string(), " does not exist, expected a model directory or a run's folder");
  if (!fs::is_directory(found)) fail("model: ", path.string(), " is a file, expected a model directory");
  if (!fs::is_directory(path / "checkpoints", error)) return path;
  const auto newest = newest_checkpoint(path);
  if (!newest) fail("model: ", path.string(), " is a run without a checkpoint yet");
  return newest->path;
}

}  // namespace

LoadedModel load_model(const fs::path& path, const std::string& objective) {
  const fs::path dir = model_directory(path);
  const std::string who = (dir / "config.json").string();
  const Json json = read_model_config(dir);
  const std::string type =
      json.contains("model_type") && json["model_type"].is_string() ? json["model_type"].get<std::string>() : "";
  std::vector<std::string> known;
  for (const Family& family : kFamilies) {
    known.push_back(family.model_type);
    if (type != family.model_type) continue;
    LoadedModel loaded;
    LanguageModelConfig config = family.read(json, who);
    if (!objective.empty()) config.objective = objective;
    if (!config.tokenizer.empty()) loaded.tokenizer = find<TokenizerSpec>(config.tokenizer, who).of_model(dir);
    if (loaded.tokenizer && loaded.tokenizer->vocab_size() > config.vocab_size) {
      fail(who, ": tokenizer ", config.tokenizer, " has ", loaded.tokenizer->vocab_size(), " tokens, vocab_size is ",
           config.vocab_size);
    }
    loaded.model = load_parameters(config, dir);
    return loaded;
  }
  fail_unknown(who, "model_type", type, known);
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
  return whole(read_model_config(dir), "max_position_embeddings");
}

std::vector<ModelFamily> model_families() {
  std::vector<ModelFamily> list;
  for (const Family& family : kFamilies) list.push_back({family.model_type, family.help});
  return list;
}

Tokenizer& tokenizer_of(const LoadedModel& loaded, const std::string& who, const std::string& instead) {
  if (!loaded.tokenizer) {
    fail(who, ": this model has ", loaded.model->config().vocab_size, " tokens and its config.json names no tokenizer",
         instead.empty() ? ", expected one that reads text" : "; " + instead);
  }
  return *loaded.tokenizer;
}

}  // namespace lineal
