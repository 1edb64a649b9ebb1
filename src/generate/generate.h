// Continuing a session: sample, read what was sampled, pass the text on.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "generate/sampler.h"
#include "generate/session.h"

namespace lineal {

struct GenerateOptions {
  int64_t length = 256;            // most tokens
  std::vector<std::string> stops;  // the text ends before the first of them
  /// Called with each piece of text as soon as it is certain: whole UTF-8 characters, never a part of a stop.
  std::function<void(std::string_view piece)> on_text;
  /// Asked before each token; true ends the text.
  std::function<bool()> cancelled;
  /// The session will be continued: the beginning of a character at the end is left to what follows, not replaced.
  bool continued = false;
};

struct Generation {
  std::string text;
  std::vector<int64_t> tokens;  // those of the stop too
  std::string finish;           // "length", "stop", "cancelled" or "end": the tokenizer's end of a document
  std::string stop;             // the stop that was found
};

/// Where the text that was read ends inside a character, the result begins with the whole of it. The session has then
/// read every token of the result. `sampler` has observed what its penalty shall see.
Generation generate(Session& session, const Tokenizer& tokenizer, Sampler& sampler, const GenerateOptions& options);

}  // namespace lineal
