// The text of a run and the parts it is divided into: the same for training on it and for measuring on what was kept.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/masking.h"
#include "data/split.h"
#include "interop/load.h"
#include "train/train_config.h"

namespace lineal {

/// What a run's config.json says of its text.
struct RunText {
  TrainConfig train;
  std::vector<std::string> data;
  std::string text_field;
};

/// Throws Error naming `who` when the folder is no run.
RunText read_run_text(const std::filesystem::path& run, const std::string& who);

/// The documents of `data` as tokens; a bar shows the reading if `show_progress`.
std::shared_ptr<const TokenStore> open_tokens(const std::vector<std::string>& data, const std::string& text_field,
                                              const LoadedModel& loaded, const std::string& who, bool show_progress);

/// Training, validation and test part.
Split divide(const std::shared_ptr<const TokenStore>& store, const TrainConfig& train);

/// What masked_lm hides.
Masking masking_of(const TrainConfig& train, const LoadedModel& loaded, const std::string& who);

}  // namespace lineal
