// Models that are compared read the same tokens.
#pragma once

#include <string>

#include "interop/load.h"

namespace lineal {

/// Throws Error naming both when the second model's tokenizer is another than the first's, by its name or the file it
/// was made from, or when one has none.
void check_same_tokenizer(const std::string& who, const std::string& first_path, const LoadedModel& first,
                          const std::string& second_path, const LoadedModel& second);

}  // namespace lineal
