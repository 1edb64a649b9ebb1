// Model directories in a family's published layout.
#pragma once

#include <filesystem>
#include <string>

#include "backbones/language_model.h"

namespace lineal {

/// What a tensor file may hold numbers as: "float32", "bfloat16", "float16".
std::vector<std::string> dtype_names();

/// Writes config.json and model.safetensors as the family has them, or ours for "lineal"; numbers become `dtype`. Of
/// more than 5 GB there are files model-0000I-of-0000N.safetensors and an index. Files of the directory `source` that
/// are its tokenizer are copied. A model that the family cannot express is an Error that names what is in the way, and
/// nothing is written.
void save_as(const LanguageModel& model, const std::string& family, const std::string& dtype,
             const std::filesystem::path& dir, const std::filesystem::path& source);

/// How many bytes of tensors one file holds at most.
constexpr int64_t kShardBytes = 5'000'000'000;

/// The tensors as one file, or as files of at most `most` bytes of tensors (one that is larger alone) and their index.
void save_shards(const std::vector<std::pair<std::string, at::Tensor>>& tensors, const std::filesystem::path& dir,
                 int64_t most = kShardBytes);

}  // namespace lineal
