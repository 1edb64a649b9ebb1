#include "data/split.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "data/shuffle.h"

namespace lineal {
namespace {

/// A document that can teach or test anything: it has a token to predict.
bool usable(const TokenSpan& document) { return document.size() >= 2; }

/// The place of a document between 0 and 1.
double draw(const TokenStore& store, int64_t document, uint64_t seed) {
  return static_cast<double>(mix(seed, store.hash(document)) >> 11) * 0x1p-53;
}

/// The one usable document, cut into two.
void cut_document(Split& split, TokenSpan document, double fraction) {
  const int64_t n = document.size();
  if (n < 4) {
    fail("split: the only document of more than one token has ", n,
         ", expected at least 4 for training and validation; give more text, or --validation 0");
  }
  const auto wanted = static_cast<int64_t>(std::llround(fraction * static_cast<double>(n)));
  const int64_t cut = document.end - std::clamp<int64_t>(wanted, 2, n - 2);
  split.train.documents.push_back({document.begin, cut});
  split.validation.documents.push_back({cut, document.end});
}

}  // namespace

int64_t Part::tokens() const {
  int64_t total = 0;
  for (const TokenSpan& document : documents) total += document.size();
  return total;
}

Split split(std::shared_ptr<const TokenStore> store, double fraction, uint64_t seed, double test) {
  if (!(fraction >= 0 && fraction < 1)) {
    fail("split: the validation fraction is ", fraction, ", expected at least 0 and less than 1");
  }
  if (!(test >= 0 && test < 1 - fraction)) {
    fail("split: the test fraction is ", test, ", expected at least 0 and less than ", 1 - fraction, " beside ",
         fraction, " for validation");
  }
  // Per part: how many usable documents, and which of them is nearest to the threshold.
  struct Side {
    int64_t count = 0;
    int64_t nearest = -1;
    double distance = 2;
  } train_side, validation_side, test_side;
  for (int64_t i = 0; i < store->documents(); ++i) {
    if (!usable(store->document(i))) continue;
    const double distance = draw(*store, i, seed) - fraction;
    Side& side = distance < 0 ? validation_side : distance < test ? test_side : train_side;
    ++side.count;
    if (std::abs(distance) < side.distance) side.nearest = i, side.distance = std::abs(distance);
  }
  const int64_t count = train_side.count + validation_side.count + test_side.count;
  if (count == 0) fail("split: no document has two tokens, of ", store->documents(), "; give more text");
  if (test > 0 && (test_side.count == 0 || test_side.count == count)) {
    fail("split: of ", count, " documents of two tokens ", test_side.count == 0 ? "none" : "all",
         " fell into the test part of ", test, "; give more documents, another seed or another fraction");
  }

  int64_t changed = -1;
  if (fraction > 0 && validation_side.count == 0) changed = train_side.nearest;
  if (train_side.count == 0) changed = validation_side.nearest;
  Split result{{store, {}}, {store, {}}, {store, {}}};
  for (int64_t i = 0; i < store->documents(); ++i) {
    const TokenSpan document = store->document(i);
    if (document.size() == 0) continue;
    if (fraction > 0 && count == 1 && usable(document)) {
      cut_document(result, document, fraction);
      continue;
    }
    const double drawn = draw(*store, i, seed);
    const bool validation = (drawn < fraction) != (i == changed);
    const bool tested = i != changed && drawn >= fraction && drawn - fraction < test;
    (validation ? result.validation : tested ? result.test : result.train).documents.push_back(document);
  }
  return result;
}

}  // namespace lineal
