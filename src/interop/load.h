// Any model directory, ours or a published one.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backbones/language_model.h"
#include "data/tokenizer.h"

namespace lineal {

struct LoadedModel {
  std::shared_ptr<LanguageModel> model;  // float32, on the CPU
  std::shared_ptr<Tokenizer> tokenizer;  // null when the directory names none and the vocabulary is not bytes
};

/// `path`: a model directory, or a run's folder (its newest checkpoint). The model_type in config.json decides the
/// family; an unknown one is an Error that lists the known. `objective` is what it is going to be trained for, if not
/// what it was.
LoadedModel load_model(const std::filesystem::path& path, const std::string& objective = "");

/// The tokens of a text that the model in `path` was trained on: its run's context, or max_position_embeddings; none
/// when neither is there.
std::optional<int64_t> training_length(const std::filesystem::path& path);

/// The families that load_model knows, by their model_type.
struct ModelFamily {
  std::string model_type;
  std::string help;
};
std::vector<ModelFamily> model_families();

/// The tokenizer, or an Error that says why text cannot be read or written with this model, and what the caller offers
/// `instead`, if anything.
Tokenizer& tokenizer_of(const LoadedModel& loaded, const std::string& who, const std::string& instead = "");

}  // namespace lineal
