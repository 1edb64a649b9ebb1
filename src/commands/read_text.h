// A file of text into a session.
#pragma once

#include <string>

#include "data/tokenizer.h"
#include "generate/session.h"

namespace lineal {

/// Reads a file, `-` for standard input, with a progress bar. Several documents in it are an Error.
void read_text(Session& session, const Tokenizer& tokenizer, const std::string& path, const std::string& who);

}  // namespace lineal
