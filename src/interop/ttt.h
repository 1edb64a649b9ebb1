// The published TTT models ("model_type": "ttt"): our parameters have their names, so only the configuration differs.
#pragma once

#include "backbones/language_model.h"

namespace lineal {

/// `json`: the fields of a published config.json, those of TTTConfig; absent ones have the published defaults, fields
/// that say nothing about the computation are ignored. `who` names the file in errors.
LanguageModelConfig read_ttt_config(const Json& json, const std::string& who);

}  // namespace lineal
