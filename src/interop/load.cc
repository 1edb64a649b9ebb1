#include "interop/load.h"

#include "backbones/model_files.h"
#include "core/registry.h"
#include "interop/ttt.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

struct Family {
  const char* model_type;
  LanguageModelConfig (*read)(const Json& json, const std::string& who);
};

constexpr Family kFamilies[] = {
    {"lineal", LanguageModelConfig::from_json},
    {"ttt", read_ttt_config},
};

/// A run's folder stands for its newest checkpoint, checkpoints/step-N with the largest N.
fs::path model_directory(const fs::path& path) {
  if (!fs::exists(path))
    fail("model: ", path.string(), " does not exist, expected a model directory or a run's folder");
  if (!fs::is_directory(path)) fail("model: ", path.string(), " is a file, expected a model directory");
  if (!fs::is_directory(path / "checkpoints")) return path;
  int64_t newest = -1;
  for (const auto& entry : fs::directory_iterator(path / "checkpoints")) {
    const std::string name = entry.path().filename().string();
    const std::string digits = name.starts_with("step-") ? name.substr(5) : "";
    if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != digits.npos) continue;
    newest = std::max<int64_t>(newest, std::stoll(digits));
  }
  if (newest < 0) fail("model: ", path.string(), " is a run without a checkpoint yet");
  return path / "checkpoints" / ("step-" + std::to_string(newest));
}

}  // namespace

LoadedModel load_model(const fs::path& path) {
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
    const LanguageModelConfig config = family.read(json, who);
    if (!config.tokenizer.empty()) loaded.tokenizer = find<TokenizerSpec>(config.tokenizer, who).make();
    if (loaded.tokenizer && loaded.tokenizer->vocab_size() > config.vocab_size) {
      fail(who, ": tokenizer ", config.tokenizer, " has ", loaded.tokenizer->vocab_size(), " tokens, vocab_size is ",
           config.vocab_size);
    }
    loaded.model = load_parameters(config, dir);
    return loaded;
  }
  fail_unknown(who, "model_type", type, known);
}

Tokenizer& tokenizer_of(const LoadedModel& loaded, const std::string& who) {
  if (!loaded.tokenizer) {
    fail(who, ": this model has ", loaded.model->config().vocab_size,
         " tokens and its directory no tokenizer; give token ids with --tokens");
  }
  return *loaded.tokenizer;
}

}  // namespace lineal
