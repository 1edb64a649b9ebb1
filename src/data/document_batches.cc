#include "data/document_batches.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"
#include "data/shuffle.h"

namespace lineal {

DocumentBatches::DocumentBatches(Part part, const DocumentRows& rows, uint64_t seed)
    : part_(std::move(part)), rows_(rows), seed_(seed) {
  if (rows.B < 1 || rows.T < 1) {
    fail("batches: ", rows.B, " documents of at most ", rows.T, " tokens, expected at least 1 of at least 1");
  }
  std::erase_if(part_.documents, [](const TokenSpan& document) { return document.size() < 2; });
  if (part_.documents.empty()) {
    fail("batches: no document of this part has two tokens, expected at least one with a token to predict");
  }
}

int64_t DocumentBatches::kept(const TokenSpan& document) const {
  return std::min(document.size(), rows_.T + (rows_.shifted ? 1 : 0));
}

int64_t DocumentBatches::cut() const {
  return std::count_if(part_.documents.begin(), part_.documents.end(),
                       [&](const TokenSpan& document) { return kept(document) < document.size(); });
}

std::shared_ptr<const std::vector<int64_t>> DocumentBatches::order(int64_t epoch) const {
  const std::lock_guard lock(mutex_);
  if (epoch != epoch_) {
    std::mt19937_64 random(mix(seed_, static_cast<uint64_t>(epoch)));
    order_ = std::make_shared<const std::vector<int64_t>>(permutation(documents(), random));
    epoch_ = epoch;
  }
  return order_;
}

/// `document(b)` is the index of row b's, or -1.
template <class Document>
Batch DocumentBatches::batch(const Document& document) const {
  const int64_t shift = rows_.shifted ? 1 : 0;
  std::vector<TokenSpan> spans;
  int64_t T = 1;
  for (int64_t b = 0; b < rows_.B; ++b) {
    const int64_t index = document(b);
    TokenSpan span;
    if (index >= 0) span = part_.documents[static_cast<size_t>(index)], span.end = span.begin + kept(span);
    spans.push_back(span);
    T = std::max(T, span.size() - shift);
  }
  const auto filled = [&](int64_t length) { return at::full({rows_.B, length}, rows_.pad, at::kLong); };
  const Tensor tokens = filled(T + shift), mask = at::zeros({rows_.B, T}), starts = at::zeros({rows_.B, T}, at::kBool),
               padding = at::zeros({rows_.B, T}, at::kBool);
  for (int64_t b = 0; b < rows_.B; ++b) {
    const int64_t length = std::max<int64_t>(spans[static_cast<size_t>(b)].size() - shift, 0);
    part_.store->copy(spans[static_cast<size_t>(b)], tokens[b].mutable_data_ptr<int64_t>());
    mask[b].slice(0, 0, length).fill_(1);
    starts[b][0].fill_(true);
    if (length == T) continue;
    starts[b][length].fill_(true);
    padding[b].slice(0, length).fill_(true);
  }
  const Tensor inputs = tokens.slice(1, 0, T).contiguous();
  return {inputs, shift ? tokens.slice(1, 1).contiguous() : inputs, mask, {starts, padding}};
}

Batch DocumentBatches::at(int64_t step) const {
  int64_t first;
  if (step < 0 || __builtin_mul_overflow(step, rows_.B, &first)) fail("batches: step ", step, ", expected a count");
  return batch([&](int64_t b) {
    const int64_t row = first + b;
    return (*order(row / documents()))[static_cast<size_t>(row % documents())];
  });
}

int64_t DocumentBatches::steps_in_order() const { return (documents() + rows_.B - 1) / rows_.B; }

Batch DocumentBatches::in_order(int64_t step) const {
  if (step < 0 || step >= steps_in_order()) {
    fail("batches: step ", step, " of the documents in order, expected 0 to ", steps_in_order() - 1);
  }
  return batch([&](int64_t b) {
    const int64_t index = step * rows_.B + b;
    return index < documents() ? index : -1;
  });
}

}  // namespace lineal
