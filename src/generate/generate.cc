#include "generate/generate.h"

#include "core/error.h"
#include "generate/utf8.h"

namespace lineal {

Generation generate(Session& session, const Tokenizer& tokenizer, Sampler& sampler, const GenerateOptions& options) {
  Generation result;
  Utf8Stream characters;
  characters.push(tokenizer.decode({session.recent().begin(), session.recent().end()}));
  StopStream stops(options.stops);
  const auto pass = [&](const std::string& piece) {
    result.text += piece;
    if (!piece.empty() && options.on_text) options.on_text(piece);
  };
  result.finish = "length";
  while (static_cast<int64_t>(result.tokens.size()) < options.length && !stops.stopped()) {
    if (options.cancelled && options.cancelled()) {
      result.finish = "cancelled";
      break;
    }
    const int64_t token = sampler.next(session.logits());
    if (token >= tokenizer.vocab_size()) {
      fail("generate: the model chose token ", token, ", the tokenizer has ", tokenizer.vocab_size());
    }
    if (token == tokenizer.special().end) {
      result.finish = "end";
      break;
    }
    session.read(token);
    result.tokens.push_back(token);
    pass(stops.push(characters.push(tokenizer.decode({token}))));
  }
  if (!stops.stopped() && !options.continued) pass(stops.push(characters.finish()));
  pass(stops.finish());
  result.stop = stops.matched();
  if (stops.stopped()) result.finish = "stop";
  return result;
}

}  // namespace lineal
