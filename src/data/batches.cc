#include "data/batches.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"
#include "data/shuffle.h"

namespace lineal {
namespace {

constexpr int64_t kFarthest =
    int64_t{1} << 62;  // positions stay below, so that one more epoch or row does not overflow
constexpr size_t kRecentEpochs = 4;

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Removes empty documents, or throws.
Part checked(Part part, int64_t B, int64_t T) {
  int64_t tokens;
  if (B < 1 || T < 1 || __builtin_mul_overflow(B, T, &tokens) || tokens > kFarthest) {
    fail("batches: B=", B, " sequences of T=", T, " tokens, expected at least 1 of at least 1");
  }
  auto& documents = part.documents;
  std::erase_if(documents, [](const TokenSpan& document) { return document.size() == 0; });
  if (std::none_of(documents.begin(), documents.end(), [](const TokenSpan& d) { return d.size() >= 2; })) {
    fail("batches: no document of this part has two tokens, expected at least one with a token to predict");
  }
  return part;
}

/// Where each document begins when they follow each other in `order`, and the end of the last.
template <class Order>
std::vector<int64_t> begins_of(const std::vector<TokenSpan>& documents, const Order& order) {
  std::vector<int64_t> begins(documents.size() + 1);
  for (size_t i = 0; i < documents.size(); ++i) begins[i + 1] = begins[i] + documents[order(i)].size();
  return begins;
}

/// Tokens of one document, copied together.
struct Run {
  TokenSpan span;  // in the store
  bool starts;     // at the document's first token
};

/// Copies at most `most` tokens from `position` of the stream on, up to the end of a document.
template <class Order>
Run copy_run(const Part& part, const std::vector<int64_t>& begins, const Order& order, int64_t position, int64_t most,
             int64_t* to) {
  const auto next = std::upper_bound(begins.begin(), begins.end(), position);
  const size_t place = static_cast<size_t>(next - begins.begin()) - 1;
  const int64_t offset = position - begins[place];
  const TokenSpan document = part.documents[order(place)];
  const int64_t begin = document.begin + offset;
  const TokenSpan span = {begin, std::min(begin + most, document.end)};
  part.store->copy(span, to);
  return {span, offset == 0};
}

/// A batch to be filled row by row.
struct Rows {
  Rows(int64_t B, int64_t T)
      : inputs(at::zeros({B, T}, at::kLong)),
        targets(at::zeros({B, T}, at::kLong)),
        mask(at::zeros({B, T}, at::kFloat)),
        starts(at::zeros({B, T}, at::kBool)) {}

  /// The first `count` places of row b from count + 1 tokens and whether each starts a document. starts[0] counts only
  /// when `continues`.
  void fill(int64_t b, int64_t count, const std::vector<int64_t>& tokens, const std::vector<char>& begins,
            bool continues) {
    std::copy_n(tokens.begin(), count, inputs[b].mutable_data_ptr<int64_t>());
    std::copy_n(tokens.begin() + 1, count, targets[b].mutable_data_ptr<int64_t>());
    float* row_mask = mask[b].mutable_data_ptr<float>();
    bool* row_starts = starts[b].mutable_data_ptr<bool>();
    for (int64_t t = 0; t < count; ++t) {
      row_mask[t] = begins[t + 1] ? 0.0f : 1.0f;
      row_starts[t] = begins[t] && (t > 0 || continues);
      any_start = any_start || row_starts[t];
    }
  }

  Batch batch() const { return {inputs, targets, mask, any_start ? Segments{starts} : Segments{}}; }

  Tensor inputs, targets, mask, starts;
  bool any_start = false;
};

}  // namespace

/// One epoch's stream and the order of the chunks that begin in it.
struct Batches::Epoch {
  int64_t number;
  std::vector<int64_t> order;   // of documents
  std::vector<int64_t> begins;  // of order[i] in the stream before rotation, and its end
  int64_t rotation;             // the stream begins with this token
  std::vector<int64_t> chunks;  // row number -> chunk, both from the epoch's first

  Epoch(int64_t e, const Part& part, int64_t tokens, int64_t T, uint64_t seed) : number(e) {
    std::mt19937_64 random(mix(seed, static_cast<uint64_t>(e)));
    order = permutation(static_cast<int64_t>(part.documents.size()), random);
    begins = begins_of(part.documents, [this](size_t i) { return order[i]; });
    rotation = below(tokens, random);
    chunks = permutation(ceil_div((e + 1) * tokens, T) - ceil_div(e * tokens, T), random);
  }
};

Batches::Batches(Part part, int64_t B, int64_t T, uint64_t seed)
    : part_(checked(std::move(part), B, T)), B_(B), T_(T), tokens_(part_.tokens()), seed_(seed) {}
Batches::~Batches() = default;

std::shared_ptr<const Batches::Epoch> Batches::epoch_at(int64_t number) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(recent_.begin(), recent_.end(), [&](const auto& e) { return e->number == number; });
  if (found != recent_.end()) return *found;
  if (recent_.size() == kRecentEpochs) recent_.erase(recent_.begin());
  return recent_.emplace_back(std::make_shared<Epoch>(number, part_, tokens_, T_, seed_));
}

int64_t Batches::epoch(int64_t step) const {
  int64_t row, position;
  if (step < 0 || __builtin_mul_overflow(step, B_, &row) || __builtin_mul_overflow(row, T_, &position) ||
      position > kFarthest - B_ * T_) {
    fail("batches: step ", step, " of ", B_, " x ", T_, " tokens, expected 0 to ", kFarthest / (B_ * T_) - 1);
  }
  return position / tokens_;
}

Batch Batches::at(int64_t step) const {
  epoch(step);  // checks it
  Rows rows(B_, T_);
  std::vector<int64_t> tokens(static_cast<size_t>(T_ + 1));
  std::vector<char> begins(static_cast<size_t>(T_ + 1));
  for (int64_t b = 0; b < B_; ++b) {
    const int64_t row = step * B_ + b;
    const int64_t e = row * T_ / tokens_;
    const int64_t first = ceil_div(e * tokens_, T_);
    int64_t position = (first + epoch_at(e)->chunks[row - first]) * T_;
    std::fill(begins.begin(), begins.end(), 0);
    int64_t follows = -1;  // the place in the store that goes on with the document
    for (int64_t t = 0; t <= T_;) {
      const auto epoch = epoch_at(position / tokens_);
      const int64_t in_epoch = position % tokens_;
      const int64_t in_stream = (in_epoch + epoch->rotation) % tokens_;
      const Run run = copy_run(
          part_, epoch->begins, [&](size_t i) { return epoch->order[i]; }, in_stream,
          std::min(T_ + 1 - t, tokens_ - in_epoch), &tokens[t]);
      begins[t] = run.starts || run.span.begin != follows;
      follows = run.span.end;
      t += run.span.size();
      position += run.span.size();
    }
    rows.fill(b, T_, tokens, begins, /*continues=*/false);
  }
  return rows.batch();
}

SequentialBatches::SequentialBatches(Part part, int64_t B, int64_t T)
    : part_(checked(std::move(part), B, T)), B_(B), T_(T) {
  begins_ = begins_of(part_.documents, [](size_t i) { return i; });
  lane_ = ceil_div(begins_.back() - 1, B_);
}

int64_t SequentialBatches::steps() const { return ceil_div(lane_, T_); }

Batch SequentialBatches::at(int64_t step) const {
  if (step < 0 || step >= steps()) fail("batches: step ", step, " of the part in order, expected 0 to ", steps() - 1);
  const int64_t from = step * T_;
  const int64_t length = std::min(T_, lane_ - from);
  Rows rows(B_, length);
  std::vector<int64_t> tokens(static_cast<size_t>(length + 1));
  std::vector<char> begins(static_cast<size_t>(length + 1));
  for (int64_t b = 0; b < B_; ++b) {
    const int64_t position = b * lane_ + from;
    const int64_t count = std::min(length, begins_.back() - 1 - position);
    if (count <= 0) continue;
    std::fill(begins.begin(), begins.end(), 0);
    for (int64_t t = 0; t <= count;) {
      const Run run = copy_run(
          part_, begins_, [](size_t i) { return i; }, position + t, count + 1 - t, &tokens[t]);
      begins[t] = run.starts;
      t += run.span.size();
    }
    rows.fill(b, count, tokens, begins, /*continues=*/step > 0);
  }
  return rows.batch();
}

}  // namespace lineal
