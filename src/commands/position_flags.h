// --position and what goes with it: how attention layers read texts longer than those a model was trained on.
#pragma once

#include "commands/command.h"
#include "eval/extrapolation.h"
#include "interop/load.h"

namespace lineal {

/// The flags; `how.method` stays empty without --position.
void add_position(CLI::App& app, Extrapolation& how);

/// With the length that the model in `path` was trained on, unless `how` has one.
Extrapolation with_length(const Extrapolation& how, const std::string& path);

/// The model of `path`, its attention changed if `how` has a method.
LoadedModel load_model(const std::string& path, const Extrapolation& how);

}  // namespace lineal
