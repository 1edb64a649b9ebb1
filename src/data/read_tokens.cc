#include "data/read_tokens.h"

namespace lineal {

void read_tokens(TextReader& reader, const Tokenizer& tokenizer, const DocumentSink& sink) {
  const SpecialTokens special = tokenizer.special();
  bool starts = false, open = false, more = true;  // a document starts with the next token; one has begun and not ended
  const auto end_document = [&] {
    if (open && special.end) more = sink({*special.end}, false, "");
    open = false;
  };
  for (TextPiece piece; more && reader.next(piece);) {
    if (piece.starts_document) end_document(), starts = true;
    if (!more) return;
    std::vector<int64_t> tokens = tokenizer.encode(piece.bytes);
    if (tokens.empty()) continue;
    if (starts && special.begin) tokens.insert(tokens.begin(), *special.begin);
    more = sink(std::move(tokens), starts, piece.bytes);
    open = true;
    starts = false;
  }
  if (more) end_document();
}

}  // namespace lineal
