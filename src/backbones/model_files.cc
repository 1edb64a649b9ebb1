#include "backbones/model_files.h"

#include <ATen/ATen.h>
#include <zlib.h>

#include <cstring>
#include <iomanip>

#include "core/error.h"
#include "core/file.h"
#include "core/safetensors.h"

namespace lineal {

std::vector<std::pair<std::string, Tensor>> named_tensors(const LanguageModel& model) {
  std::vector<std::pair<std::string, Tensor>> result;
  for (const auto& item : model.named_parameters()) result.emplace_back(item.key(), item.value().detach());
  for (const auto& item : model.named_buffers()) result.emplace_back(item.key(), item.value());
  return result;
}

void save_model(const LanguageModel& model, const std::filesystem::path& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) fail("model: cannot make the folder ", dir.string(), ": ", error.message());
  write_atomic(dir / "config.json", model.config().to_json().dump(2) + "\n");
  save_safetensors(dir / "model.safetensors", named_tensors(model), {{"format", "pt"}});
}

namespace {

constexpr int kMostDepth = 64;

/// Text of JSON with Python's bare names for numbers that JSON lacks written as objects.
std::string tagged_numbers(const std::string& json) {
  std::string result;
  bool quoted = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const auto name = [&](const char* word) { return json.compare(i, std::strlen(word), word) == 0; };
    const char* found = nullptr;
    for (const char* word : {"-Infinity", "Infinity", "NaN"}) {
      if (!quoted && !found && name(word)) found = word;
    }
    if (found) {
      result += text("{\"__float__\": \"", found, "\"}");
      i += std::strlen(found) - 1;
      continue;
    }
    if (json[i] == '"') quoted = !quoted;
    if (json[i] == '\\' && quoted && i + 1 < json.size()) result += json[i++];
    result += json[i];
  }
  return result;
}

}  // namespace

Json read_json(const std::filesystem::path& path, const std::string& what) {
  const auto check = [&](int depth, Json::parse_event_t, const Json&) {
    if (depth > kMostDepth) fail(path.string(), ": nests deeper than ", kMostDepth, "; expected ", what);
    return true;
  };
  const Json json = Json::parse(tagged_numbers(read_file(path)), check, /*allow_exceptions=*/false);
  if (json.is_discarded()) fail(path.string(), ": no valid JSON; expected ", what);
  if (!json.is_object()) fail(path.string(), ": expected a JSON object, got ", json.type_name());
  return json;
}

Json read_model_config(const std::filesystem::path& dir) {
  return read_json(dir / "config.json", "the configuration of a model");
}

void set_parameters(LanguageModel& model, const std::vector<std::pair<std::string, Tensor>>& tensors,
                    const std::string& who) {
  const auto own = named_tensors(model);
  std::map<std::string, Tensor> missing(own.begin(), own.end());
  for (const auto& [name, tensor] : tensors) {
    const auto found = missing.find(name);
    if (found == missing.end()) {
      std::vector<std::string> names;
      for (const auto& [known, _] : own) names.push_back(known);
      if (std::find(names.begin(), names.end(), name) != names.end()) fail(who, ": tensor ", name, " is there twice");
      fail_unknown(who, "tensor", name, names);
    }
    if (found->second.sizes() != tensor.sizes()) {
      fail(who, ": tensor ", name, " is ", tensor.sizes(), ", config.json asks for ", found->second.sizes());
    }
    if (!tensor.is_floating_point()) fail(who, ": tensor ", name, " is ", tensor.dtype().name(), ", expected floats");
    missing.erase(found);
  }
  for (const auto& item : model.named_parameters()) {
    if (missing.count(item.key()) > 0) fail(who, ": tensor ", item.key(), " ", item.value().sizes(), " is missing");
  }
  std::map<std::string, Tensor> targets(own.begin(), own.end());
  at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : tensors) targets[name].copy_(tensor);
}

bool share_or_copy(Tensor own, const Tensor& value) {
  at::NoGradGuard no_grad;
  const bool alike = value.is_contiguous() && value.options().type_equal(own.options());
  if (alike) {
    own.set_data(value);
  } else {
    own.copy_(value);
  }
  return alike;
}

std::shared_ptr<LanguageModel> load_native_model(const std::filesystem::path& dir) {
  const auto config = LanguageModelConfig::from_json(read_model_config(dir), (dir / "config.json").string());
  auto model = std::make_shared<LanguageModel>(config, Parameters::empty);
  const auto path = dir / "model.safetensors";
  set_parameters(*model, load_safetensors(path).tensors, path.string());
  model->eval();
  return model;
}

std::string fingerprint(const LanguageModel& model) {
  const auto add = [](uLong crc, const void* bytes, size_t size) {
    return crc32_z(crc, static_cast<const Bytef*>(bytes), size);
  };
  const std::string config = model.config().to_json().dump();
  const uLong options = add(0, config.data(), config.size());
  uLong values = 0;
  for (const auto& [name, tensor] : named_tensors(model)) {
    const Tensor plain = tensor.cpu().contiguous();
    values = add(add(values, name.data(), name.size()), plain.const_data_ptr(), plain.nbytes());
  }
  std::ostringstream out;
  out << std::hex << std::setfill('0') << std::setw(8) << options << std::setw(8) << values;
  return out.str();
}

}  // namespace lineal
