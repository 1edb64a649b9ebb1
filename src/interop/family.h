// A family of published models: its config.json read into ours and written back, its tensors' names.
#pragma once

#include <string>

#include "backbones/language_model.h"
#include "interop/name_rules.h"

namespace lineal {

/// A line of the table. Its name is config.json's model_type.
struct FamilySpec {
  static constexpr const char* kKind = "model_type";
  std::string name;
  std::string help;
  /// `who` is the file. Fields that say nothing about the function are passed over; a value that we have no layer for
  /// is an Error. The tokenizer is left open.
  LanguageModelConfig (*read)(const Json& json, const std::string& who);
  /// As near as the family comes: where read() of it differs from `config`, the family has no such model.
  Json (*write)(const LanguageModelConfig& config);
  NameRules rules;  // without rules: names and config.json are ours
};

}  // namespace lineal
