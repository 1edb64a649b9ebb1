#include "eval/perplexity.h"

#include <ATen/ATen.h>

#include <bit>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "eval/logits.h"

namespace lineal {

double Evaluation::perplexity() const { return std::exp(loss.mean()); }

double Evaluation::bits_per_byte() const {
  return loss.nats / std::numbers::ln2 / static_cast<double>(std::max<int64_t>(predicted_bytes, 1));
}

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
    tokens_.push_back(token);
    positions_.push_back(position_++);
    if (static_cast<int64_t>(tokens_.size()) > options_.chunk) predict(options_.chunk);
  }
}

/// Reads the first T of the waiting tokens; each predicts the one after it.
void Evaluator::predict(int64_t T) {
  at::NoGradGuard no_grad;
  const Tensor tokens = at::tensor(at::ArrayRef<int64_t>(tokens_).slice(0, static_cast<size_t>(T) + 1), at::kLong);
  Tensor starts = at::zeros({1, T}, at::kBool);
  bool any = false;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t position = positions_[static_cast<size_t>(t)];
    const bool restarts = options_.max_context > 0 ? position % options_.max_context == 0 : position == 0;
    if (restarts) starts.data_ptr<bool>()[t] = any = true;
  }
  const Tensor hidden = model_->hidden(tokens.slice(0, 0, T).unsqueeze(0), state_, any ? Segments{starts} : Segments{});
  const int64_t step = tokens_per_head(*model_, 1);
  for (int64_t from = 0; from < T; from += step) {
    const int64_t to = std::min(from + step, T);
    const Tensor logits = model_->head(hidden.slice(1, from, to)).squeeze(0).to(at::kFloat);  // [to - from, N]
    const Tensor nats =
        at::cross_entropy_loss(logits, tokens.slice(0, from + 1, to + 1), {}, at::Reduction::None).contiguous();
    for (int64_t t = from; t < to; ++t) {
      const int64_t target = positions_[static_cast<size_t>(t) + 1];
      if (target == 0) continue;
      const double loss = nats.const_data_ptr<float>()[t - from];
      if (!std::isfinite(loss)) {
        fail("eval: the loss of the token at position ", target, " of its document is not finite; is the model sound?");
      }
      count(loss, since_restart(target));
    }
  }
  tokens_.erase(tokens_.begin(), tokens_.begin() + T);
  positions_.erase(positions_.begin(), positions_.begin() + T);
}

/// How many tokens the one at this position of a document is predicted from.
int64_t Evaluator::since_restart(int64_t position) const {
  return options_.max_context > 0 ? (position - 1) % options_.max_context + 1 : position;
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
  if (tokens_.size() > 1) predict(static_cast<int64_t>(tokens_.size()) - 1);
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

Evaluation evaluate(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, TextReader& reader,
                    const EvalOptions& options) {
  if (options.limit < 0) fail("eval: limit is ", options.limit, ", expected at least 0");
  Evaluator evaluator(std::move(model), options);
  TextPiece piece;
  bool starts = false;
  int64_t before = 0;  // of the files' bytes, those of earlier pieces
  while ((options.limit == 0 || evaluator.tokens() < options.limit) && reader.next(piece)) {
    starts = starts || piece.starts_document;
    std::vector<int64_t> tokens = tokenizer.encode(piece.bytes);
    if (tokens.empty()) continue;
    auto bytes = static_cast<int64_t>(piece.bytes.size());
    if (options.limit > 0 && static_cast<int64_t>(tokens.size()) > options.limit - evaluator.tokens()) {
      tokens.resize(static_cast<size_t>(options.limit - evaluator.tokens()));
      bytes = static_cast<int64_t>(tokenizer.decode(tokens).size());
    }
    if (starts) bytes -= static_cast<int64_t>(tokenizer.decode({tokens.front()}).size());
    const auto chunk = static_cast<size_t>(options.chunk);
    for (size_t from = 0; from < tokens.size(); from += chunk) {
      const size_t to = std::min(from + chunk, tokens.size());
      const auto at = [&](size_t i) { return tokens.begin() + static_cast<std::ptrdiff_t>(i); };
      evaluator.read({at(from), at(to)}, starts && from == 0, from == 0 ? bytes : 0);
      const double part = static_cast<double>(to) / static_cast<double>(tokens.size());
      const auto piece_bytes = static_cast<double>(reader.bytes_read() - before);
      if (options.progress) options.progress(evaluator.tokens(), before + std::lround(part * piece_bytes));
    }
    starts = false;
    before = reader.bytes_read();
  }
  return evaluator.finish();
}

}  // namespace lineal
