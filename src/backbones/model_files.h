// A model directory: config.json + model.safetensors.                                         docs/formats.md
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backbones/language_model.h"

namespace lineal {

/// Parameters, detached, then buffers, by name.
std::vector<std::pair<std::string, Tensor>> named_tensors(const LanguageModel& model);

/// Writes both files, each atomically; the folder is made.
void save_model(const LanguageModel& model, const std::filesystem::path& dir);

/// A JSON object, `what` in words; throws Error when it is missing or no such thing, or nests so deep that printing it
/// would be a danger. Python's bare Infinity, -Infinity and NaN are read as {"__float__": "Infinity"} and so on.
Json read_json(const std::filesystem::path& path, const std::string& what);

/// config.json of a directory.
Json read_model_config(const std::filesystem::path& dir);

/// A directory written by save_model; see also interop/load.h.
std::shared_ptr<LanguageModel> load_native_model(const std::filesystem::path& dir);

/// Copies tensors over the model's parameters and buffers by name, converting their type. One that is unexpected or of
/// another shape, or a parameter that is missing, is an Error that names `who`, the tensor and both shapes.
void set_parameters(LanguageModel& model, const std::vector<std::pair<std::string, Tensor>>& tensors,
                    const std::string& who);

/// `own`, a parameter or buffer, takes the numbers of `value`, of its sizes: true if it becomes value's memory itself,
/// where that is contiguous and of its type, else they are converted.
bool share_or_copy(Tensor own, const Tensor& value);

/// Sixteen hexadecimal digits that change with the configuration and with any parameter or buffer: what a session is
/// tied to.
std::string fingerprint(const LanguageModel& model);

}  // namespace lineal
