// Any model directory, ours or a published one.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backbones/language_model.h"
#include "data/tokenizer.h"
#include "interop/family.h"

namespace lineal {

struct LoadedModel {
  std::shared_ptr<LanguageModel> model;  // float32, on the CPU
  std::shared_ptr<Tokenizer> tokenizer;  // null when the directory names none and the vocabulary is not bytes
};

/// `path`: a model directory, or a run's folder (its newest checkpoint). The model_type in config.json decides the
/// family; an unknown one is an Error that lists the known. `objective` is what it is going to be trained for, if not
/// what it was.
LoadedModel load_model(const std::filesystem::path& path, const std::string& objective = "");

/// The folder of the model in `path`: itself, or a run's newest checkpoint.
std::filesystem::path model_directory(const std::filesystem::path& path);

/// The tokens of a text that the model in `path` was trained on: its run's context, or max_position_embeddings; none
/// when neither is there.
std::optional<int64_t> training_length(const std::filesystem::path& path);

/// The family of a model directory; an unknown one is an Error that lists the known.
const FamilySpec& family_of(const std::filesystem::path& dir);

/// Attention heads of the model's layers, 1 without any.
int64_t heads_of(const LanguageModelConfig& config);

/// The tokenizer, or an Error that says why text cannot be read or written with this model, and what the caller offers
/// `instead`, if anything.
Tokenizer& tokenizer_of(const LoadedModel& loaded, const std::string& who, const std::string& instead = "");

}  // namespace lineal
