#include "interop/save.h"

#include <ATen/ATen.h>

#include <iomanip>
#include <sstream>

#include "backbones/model_files.h"
#include "core/error.h"
#include "core/file.h"
#include "core/registry.h"
#include "interop/family.h"
#include "interop/load.h"
#include "interop/published.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

struct DType {
  const char* name;
  at::ScalarType type;
};
constexpr DType kTypes[] = {{"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};

at::ScalarType type_of(const std::string& name) {
  for (const auto& [known, type] : kTypes) {
    if (name == known) return type;
  }
  fail_unknown("convert", "--dtype", name, dtype_names());
}

constexpr const char* kTokenizerFiles[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",   "vocab.json",
    "merges.txt",     "tokenizer.model",       "generation_config.json",  "chat_template.jinja",
};

/// All that decides the function, in one spelling: defaults that mean another value are resolved, what has no effect is
/// left out.
Json function_of(const LanguageModelConfig& config) {
  Json json = config.values();
  for (const char* name : {"tokenizer", "initializer_range"}) json.erase(name);
  if (config.final_norm_eps < 0) json["final_norm_eps"] = config.rms_norm_eps;
  if (!config.pre_conv) json.erase("conv_kernel");
  if (config.rescale_every > std::ssize(config.layers)) json["rescale_every"] = 0;
  if (config.intermediate_size == 0) {
    for (const char* name : {"ffn", "activation", "ffn_bias"}) json.erase(name);
  }
  json["layers"] = Json::array();
  for (const Layer& layer : config.layers) {
    Json options = all_options(layer);
    const auto is = [&](const char* name, const Json& value) {
      return options.contains(name) && options[name] == value;
    };
    options.erase("chunk_size");
    if (is("num_key_value_heads", 0)) options["num_key_value_heads"] = options["num_attention_heads"];
    if (is("time_step_rank", 0)) options["time_step_rank"] = (config.hidden_size + 15) / 16;
    if (is("attention_hidden_size", 0)) options["attention_hidden_size"] = config.hidden_size;
    if (options.contains("head_dim") && options.contains("position")) {
      options["head_dim"] = head_size_of(options, config.hidden_size);
      if (options["rotary_dims"] == options["head_dim"]) options["rotary_dims"] = 0;
      const bool uses_length = is("log_n", true) || is("position", "yarn") || is("position", "llama3") ||
                               is("position", "dynamic_ntk") || is("position", "ntk_by_parts");
      if (!uses_length) options.erase("original_length");
      if (is("position", "none")) options.erase("rope_theta");
    }
    Json item = {{"mixer", layer.mixer}};
    item.update(options);
    json["layers"].push_back(item);
  }
  return json;
}

/// The first field in which the models differ, in words, or "".
std::string field_difference(const Json& model, const Json& family) {
  for (const auto& [name, value] : model.items()) {
    if (name == "layers") continue;
    const Json other = family.contains(name) ? family[name] : Json();
    if (value != other) return text(name, " is ", line_of(value), ", it has ", line_of(other));
  }
  return "";
}

/// Throws unless the family's configuration is read as the same model.
void check_expressed(const LanguageModelConfig& config, const FamilySpec& family, const Json& json) {
  const std::string who = text("convert: ", family.name, " has no such model: ");
  Json ours = function_of(config), theirs;
  try {
    theirs = function_of(family.read(json, "it"));
  } catch (const Error& error) {
    fail(who, error.what());
  }
  for (size_t i = 0; i < ours["layers"].size(); ++i) {
    const std::string found = field_difference(ours["layers"][i], theirs["layers"][i]);
    if (!found.empty()) fail(who, "layer ", i, ": ", found);
  }
  if (const std::string found = field_difference(ours, theirs); !found.empty()) fail(who, found);
}

void make_folder(const fs::path& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) fail("model: cannot make the folder ", dir.string(), ": ", error.message());
}

void copy_tokenizer(const fs::path& source, const fs::path& dir) {
  for (const char* name : kTokenizerFiles) {
    std::error_code error;
    if (fs::exists(source / name, error)) write_atomic(dir / name, read_file(source / name));
  }
}

}  // namespace

std::vector<std::string> dtype_names() {
  std::vector<std::string> names;
  for (const auto& [name, type] : kTypes) names.push_back(name);
  return names;
}

void save_as(const LanguageModel& model, const std::string& family_name, const std::string& dtype, const fs::path& dir,
             const fs::path& source) {
  const FamilySpec& family = find<FamilySpec>(family_name, "convert");
  const at::ScalarType type = type_of(dtype);
  Json json = family.write(model.config());
  if (family.name != "lineal") {
    check_expressed(model.config(), family, json);
    const Json old = read_model_config(source);
    for (const char* name : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
      json[name] = old.contains(name) ? old[name] : Json();
    }
    json["torch_dtype"] = dtype;
  }
  auto tensors = published_tensors(named_tensors(model), model.config().layers.size(), family.rules,
                                   heads_of(model.config()), "convert: " + family.name);
  for (auto& [name, tensor] : tensors) {
    if (tensor.is_floating_point()) tensor = tensor.to(type);
  }
  make_folder(dir);
  copy_tokenizer(source, dir);
  write_atomic(dir / "config.json", json.dump(2) + "\n");
  save_shards(tensors, dir);
}

void save_shards(const std::vector<std::pair<std::string, at::Tensor>>& tensors, const fs::path& dir, int64_t most) {
  std::vector<std::vector<std::pair<std::string, at::Tensor>>> shards(1);
  int64_t total = 0, bytes = 0;
  for (const auto& item : tensors) {
    const auto size = static_cast<int64_t>(item.second.nbytes());
    if (bytes > 0 && bytes + size > most) shards.emplace_back(), bytes = 0;
    shards.back().push_back(item);
    bytes += size, total += size;
  }
  if (shards.size() == 1) return save_safetensors(dir / "model.safetensors", tensors, {{"format", "pt"}});
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    std::ostringstream file;
    file << "model-" << std::setfill('0') << std::setw(5) << i + 1 << "-of-" << std::setw(5) << shards.size()
         << ".safetensors";
    save_safetensors(dir / file.str(), shards[i], {{"format", "pt"}});
    for (const auto& [name, tensor] : shards[i]) map[name] = file.str();
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_atomic(dir / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace lineal
