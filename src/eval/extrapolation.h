// Texts longer than a model was trained on, without training: attention layers read them another way.
//   a position of the table   src/positions/
//   window, sink              see the last W tokens; and the document's first
//   log_n, key_norm           queries that grow with the logarithm of their place; keys of one length
//   hwfa                      the last attention layer sees all without positions and with log_n, those before it a
//                             window of 3/4 of the original length between them                       (HWFA: Su, 2023)
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backbones/language_model.h"

namespace lineal {

struct Extrapolation {
  std::string method;           // or several, joined by +: rerope+log_n
  double factor = 16;           // the longest text over the original length
  int64_t original_length = 0;  // tokens trained on; 0: not known
  int64_t window = 0;           // of window, sink and rerope; 0: original_length, and half of it for rerope
  int64_t sinks = 4;
};

/// Their names.
std::vector<std::string> extrapolation_methods();

/// Whether any of the model's layers can read another way.
bool can_extrapolate(const LanguageModelConfig& config);

/// The configuration with its attention layers changed; leaky_rerope is given the factor that makes the longest
/// distance original_length. Throws Error for an unknown method, one that lacks what it needs, and a model without
/// attention.
LanguageModelConfig extrapolated(const LanguageModelConfig& config, const Extrapolation& how);

/// The same of a model, whose parameters are shared. An Error of its layers then begins with the method.
std::shared_ptr<LanguageModel> extrapolated(const LanguageModel& model, const Extrapolation& how);

}  // namespace lineal
