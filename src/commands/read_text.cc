#include "commands/read_text.h"

#include <cmath>

#include "commands/progress.h"
#include "core/error.h"

namespace lineal {

void read_text(Session& session, const Tokenizer& tokenizer, const std::string& path, const std::string& who) {
  const auto sources = find_sources({path}, tokenizer.format());
  if (sources.size() > 1) {
    fail(who, ": ", path, " holds ", sources.size(), " files, expected one; a state is that of one text");
  }
  TextReader reader(sources);
  ReadingBar bar(sources);
  TextPiece piece;
  const int64_t first = session.tokens();
  for (int64_t pieces = 0, before = 0; reader.next(piece); ++pieces, before = reader.bytes_read()) {
    if (pieces > 0 && piece.starts_document) {
      fail(who, ": ", path, " holds several documents, expected one; a state is that of one text");
    }
    std::vector<int64_t> tokens = tokenizer.encode(piece.bytes);
    const auto begin = tokenizer.special().prompt_begin();
    if (session.tokens() == 0 && begin) tokens.insert(tokens.begin(), *begin);
    const auto count = static_cast<int64_t>(tokens.size());
    for (int64_t from = 0; from < count; from += Session::kChunk) {
      const int64_t to = std::min(from + Session::kChunk, count);
      session.read({tokens.begin() + from, tokens.begin() + to});
      const double part = static_cast<double>(to) / static_cast<double>(count);
      bar.draw(session.tokens() - first,
               before + std::lround(part * static_cast<double>(reader.bytes_read() - before)));
    }
  }
  bar.clear();
}

}  // namespace lineal
