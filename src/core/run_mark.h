// What tells the folder of a training run from other folders.                                  docs/formats.md
#pragma once

#include <filesystem>

namespace lineal {

/// The value of "format" in a run's config.json.
constexpr const char* kRunFormat = "lineal-run-1";

/// Whether the folder is a run: its config.json has that format. False for what cannot be read.
bool is_run(const std::filesystem::path& folder);

}  // namespace lineal
