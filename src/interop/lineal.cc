// Model directories of our own.                                                                    docs/formats.md
#include "interop/family.h"

namespace lineal {

extern const FamilySpec lineal_family_spec;
const FamilySpec lineal_family_spec = {.name = "lineal",
                                       .help = "what lineal train writes",
                                       .read = LanguageModelConfig::from_json,
                                       .write = [](const LanguageModelConfig& config) { return config.to_json(); },
                                       .rules = {}};

}  // namespace lineal
