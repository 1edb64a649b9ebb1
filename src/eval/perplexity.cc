#include "eval/perplexity.h"

#include <ATen/ATen.h>

#include <bit>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "data/read_tokens.h"
#include "eval/logits.h"

namespace lineal {

double Evaluation::perplexity() const { return std::exp(loss.mean()); }

double Evaluation::bits_per_byte() const {
  return loss.nats / std::numbers::ln2 / static_cast<double>(std::max<int64_t>(predicted_bytes, 1));
}

double Evaluation::accuracy() const {
  return static_cast<double>(correct) / static_cast<double>(std::max<int64_t>(loss.tokens, 1));
}

double Evaluation::bits_per_dimension() const { return loss.mean() / std::numbers::ln2; }

double Evaluation::pieces_per_word() const {
  return static_cast<double>(pieces) / static_cast<double>(std::max<int64_t>(words, 1));
}

double Evaluation::word_perplexity() const { return std::exp(pieces_per_word() * loss.mean()); }

std::optional<double> Evaluation::perplexity_error() const {
  if (!standard_error) return {};
  return *standard_error * perplexity();
}

std::optional<double> Evaluation::bits_per_byte_error() const {
  if (!standard_error) return {};
  const double tokens_per_byte =
      static_cast<double>(loss.tokens) / static_cast<double>(std::max<int64_t>(predicted_bytes, 1));
  return *standard_error * tokens_per_byte / std::numbers::ln2;
}

Evaluator::Evaluator(std::shared_ptr<LanguageModel> model, const EvalOptions& options)
    : model_(std::move(model)), options_(options) {
  if (options.chunk < 1) fail("eval: chunk is ", options.chunk, ", expected at least 1");
  if (options.first_bucket < 1) fail("eval: the first bucket is ", options.first_bucket, ", expected at least 1");
  if (options.max_context < 0) fail("eval: max context is ", options.max_context, ", expected at least 0");
  at::NoGradGuard no_grad;
  state_ = model_->initial_state(1);
  result_.targets.resize(static_cast<size_t>(model_->config().vocab_size));
}

void Evaluator::read(const std::vector<int64_t>& tokens, bool starts_document, int64_t bytes) {
  if (tokens.empty()) return;
  if (starts_document) {
    position_ = 0;
    ++result_.documents;
  }
  result_.tokens += static_cast<int64_t>(tokens.size());
  result_.predicted_bytes += bytes;
  for (const int64_t token : tokens) {
    if (options_.masking && restarts(position_) && !tokens_.empty()) predict(static_cast<int64_t>(tokens_.size()));
    tokens_.push_back(token);
    positions_.push_back(position_++);
    if (static_cast<int64_t>(tokens_.size()) == options_.chunk + ahead()) predict(options_.chunk);
  }
}

/// Reads the first T of the waiting tokens; each predicts the one after it, or with masking the hidden predict
/// themselves.
void Evaluator::predict(int64_t T) {
  at::NoGradGuard no_grad;
  const auto size = static_cast<size_t>(T + ahead());
  const Tensor tokens = at::tensor(at::ArrayRef<int64_t>(tokens_).slice(0, size), at::kLong).unsqueeze(0);
  Batch batch{tokens.slice(1, 0, T), tokens.slice(1, ahead(), T + ahead()), at::ones({1, T}), {}};
  if (options_.masking) batch = options_.masking->hide(batch, options_.seed, windows_++);
  Tensor starts = at::zeros({1, T}, at::kBool);
  bool any = false;
  for (int64_t t = 0; t < T; ++t) {
    if (restarts(positions_[static_cast<size_t>(t)])) starts.data_ptr<bool>()[t] = any = true;
  }
  const Tensor hidden = model_->hidden(batch.inputs, state_, any ? Segments{starts} : Segments{});
  const Tensor targets = batch.targets[0].contiguous(), counted = batch.mask[0].contiguous();
  const int64_t step = tokens_per_head(*model_, 1);
  for (int64_t from = 0; from < T; from += step) {
    const int64_t to = std::min(from + step, T);
    const Tensor logits = model_->head(hidden.slice(1, from, to)).squeeze(0).to(at::kFloat);  // [to - from, N]
    const Tensor nats =
        at::cross_entropy_loss(logits, targets.slice(0, from, to), {}, at::Reduction::None).contiguous();
    const Tensor likeliest = logits.argmax(1).contiguous();
    for (int64_t t = from; t < to; ++t) {
      const int64_t target = positions_[static_cast<size_t>(t + ahead())];
      if (options_.masking ? counted.const_data_ptr<float>()[t] == 0 : target == 0) continue;
      const double loss = nats.const_data_ptr<float>()[t - from];
      if (!std::isfinite(loss)) {
        fail("eval: the loss of the token at position ", target, " of its document is not finite; is the model sound?");
      }
      count(loss, since_restart(target));
      const int64_t token = targets.const_data_ptr<int64_t>()[t];
      ++result_.targets[static_cast<size_t>(token)];
      if (likeliest.const_data_ptr<int64_t>()[t - from] == token) ++result_.correct;
    }
  }
  tokens_.erase(tokens_.begin(), tokens_.begin() + T);
  positions_.erase(positions_.begin(), positions_.begin() + T);
}

/// Whether the token at this position of a document is read from the initial state.
bool Evaluator::restarts(int64_t position) const {
  return options_.max_context > 0 ? position % options_.max_context == 0 : position == 0;
}

/// How many tokens come before the one at this position of a document and after a restart.
int64_t Evaluator::since_restart(int64_t position) const {
  if (options_.max_context == 0) return position;
  return (position - ahead()) % options_.max_context + ahead();
}

void Evaluator::count(double nats, int64_t position) {
  result_.loss.nats += nats;
  ++result_.loss.tokens;

  const auto index = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(position / options_.first_bucket)));
  while (result_.buckets.size() <= index) {
    const int64_t begin = result_.buckets.empty() ? 0 : result_.buckets.back().end;
    result_.buckets.push_back({begin, std::max(2 * begin, options_.first_bucket), {}});
  }
  result_.buckets[index].loss.nats += nats;
  ++result_.buckets[index].loss.tokens;

  block_.nats += nats;
  if (++block_.tokens < kBlock) return;
  const double mean = block_.mean(), off = mean - mean_;
  mean_ += off / static_cast<double>(++blocks_);
  squares_ += off * (mean - mean_);
  block_ = {};
}

Evaluation Evaluator::finish() {
  const int64_t waiting = static_cast<int64_t>(tokens_.size()) - ahead();
  if (waiting > 0) predict(waiting);
  if (result_.loss.tokens == 0) {
    fail("eval: nothing to predict in ", result_.documents, " documents of one token each; the first token of a ",
         "document is not predicted, expected two at least");
  }
  if (blocks_ > 1) {
    const auto n = static_cast<double>(blocks_);
    result_.standard_error = std::sqrt(squares_ / (n - 1) / n);
  }
  std::erase_if(result_.buckets, [](const Bucket& bucket) { return bucket.loss.tokens == 0; });
  return result_;
}

namespace {

/// Gives an Evaluator whole documents, at most `limit` tokens of them, with the tokens of their begin and end.
class Feed {
 public:
  Feed(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, const EvalOptions& options)
      : evaluator_(std::move(model), options), tokenizer_(tokenizer), options_(options) {
    if (options.limit < 0) fail("eval: limit is ", options.limit, ", expected at least 0");
  }

  bool full() const { return options_.limit > 0 && evaluator_.tokens() >= options_.limit; }
  int64_t tokens() const { return evaluator_.tokens(); }

  /// Tokens of a document, of this text. `progress` is given the share of them that has been read.
  void read(std::vector<int64_t> tokens, bool starts, std::string_view text,
            const std::function<void(double)>& progress) {
    if (tokens.empty()) return;
    std::string shorter;
    if (options_.limit > 0 && static_cast<int64_t>(tokens.size()) > options_.limit - evaluator_.tokens()) {
      tokens.resize(static_cast<size_t>(options_.limit - evaluator_.tokens()));
      text = shorter = tokenizer_.decode(tokens);
    }
    count(tokens, starts, text);
    auto bytes = static_cast<int64_t>(text.size());
    if (starts && !options_.masking) {
      const std::string first = tokenizer_.decode({tokens.front()});
      const bool blank_added = first.starts_with(' ') && !text.starts_with(' ');  // by sentencepiece
      bytes -= static_cast<int64_t>(first.size()) - (blank_added ? 1 : 0);
    }
    const auto chunk = static_cast<size_t>(options_.chunk);
    for (size_t from = 0; from < tokens.size(); from += chunk) {
      const size_t to = std::min(from + chunk, tokens.size());
      const auto at = [&](size_t i) { return tokens.begin() + static_cast<std::ptrdiff_t>(i); };
      evaluator_.read({at(from), at(to)}, starts && from == 0, from == 0 ? bytes : 0);
      progress(static_cast<double>(to) / static_cast<double>(tokens.size()));
    }
  }

  Evaluation finish() {
    Evaluation result = evaluator_.finish();
    result.words = words_;
    result.pieces = pieces_;
    return result;
  }

 private:
  void count(const std::vector<int64_t>& tokens, bool starts, std::string_view text) {
    for (const int64_t token : tokens) pieces_ += special_.has(token) ? 0 : 1;
    bool inside = !starts && inside_word_;
    for (const char c : text) {
      const bool space = c == ' ' || (c >= '\t' && c <= '\r');
      if (!space && !inside) ++words_;
      inside = !space;
    }
    inside_word_ = inside;
  }

  Evaluator evaluator_;
  const Tokenizer& tokenizer_;
  const SpecialTokens special_ = tokenizer_.special();
  const EvalOptions& options_;
  int64_t words_ = 0, pieces_ = 0;
  bool inside_word_ = false;
};

}  // namespace

Evaluation evaluate(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, TextReader& reader,
                    const EvalOptions& options) {
  Feed feed(std::move(model), tokenizer, options);
  int64_t before = 0;  // of the files' bytes, those of earlier pieces
  read_tokens(reader, tokenizer, [&](std::vector<int64_t> tokens, bool starts, std::string_view text) {
    const int64_t bytes = text.empty() ? 0 : reader.bytes_read() - before;
    feed.read(std::move(tokens), starts, text, [&](double share) {
      if (options.progress) options.progress(feed.tokens(), before + std::lround(share * static_cast<double>(bytes)));
    });
    before += bytes;
    return !feed.full();
  });
  return feed.finish();
}

Evaluation evaluate(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, const Part& part,
                    const EvalOptions& options) {
  constexpr int64_t kPiece = 1 << 16;  // tokens
  Feed feed(std::move(model), tokenizer, options);
  for (const TokenSpan& document : part.documents) {
    for (int64_t from = document.begin; from < document.end && !feed.full(); from += kPiece) {
      const TokenSpan span = {from, std::min(from + kPiece, document.end)};
      std::vector<int64_t> tokens(static_cast<size_t>(span.size()));
      part.store->copy(span, tokens.data());
      const std::string text = tokenizer.decode(tokens);
      feed.read(std::move(tokens), from == document.begin, text, [&](double) {
        if (options.progress) options.progress(feed.tokens(), 0);
      });
    }
  }
  return feed.finish();
}

}  // namespace lineal
