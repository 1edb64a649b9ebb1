#include "data/masking.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "data/shuffle.h"

namespace lineal {

Masking::Masking(const std::string& who, const std::string& tokenizer_name, const Tokenizer& tokenizer,
                 const MaskingShares& shares)
    : shares_(shares) {
  const SpecialTokens special = tokenizer.special();
  if (!special.mask) {
    fail(who, ": masked_lm hides tokens behind a mask, which tokenizer ", tokenizer_name,
         " does not have; expected one that does, such as amino_acids");
  }
  if (!(shares.fraction > 0 && shares.fraction <= 1)) {
    fail(who, ": the fraction of masked tokens is ", shares.fraction, ", expected above 0 and at most 1");
  }
  if (!(shares.masked >= 0 && shares.random >= 0 && shares.masked + shares.random <= 1)) {
    fail(who, ": of the chosen tokens ", shares.masked, " are masked and ", shares.random,
         " random, expected shares of at most 1 together");
  }
  mask_ = *special.mask;
  for (int64_t id = 0; id < tokenizer.vocab_size(); ++id) {
    is_ordinary_.push_back(!special.has(id));
    if (is_ordinary_.back()) ordinary_.push_back(id);
  }
}

Batch Masking::hide(const Batch& batch, uint64_t seed, int64_t first_row) const {
  const int64_t B = batch.size(), T = batch.length();
  Batch hidden{batch.inputs.clone(), batch.inputs, at::zeros({B, T}, at::kFloat), batch.segments};
  for (int64_t b = 0; b < B; ++b) {
    int64_t* tokens = hidden.inputs[b].mutable_data_ptr<int64_t>();
    float* chosen = hidden.mask[b].mutable_data_ptr<float>();
    std::vector<int64_t> places;
    for (int64_t t = 0; t < T; ++t) {
      if (is_ordinary_[static_cast<size_t>(tokens[t])]) places.push_back(t);
    }
    const auto n = static_cast<int64_t>(places.size());
    if (n == 0) continue;
    std::mt19937_64 random(mix(seed, static_cast<uint64_t>(first_row + b)));
    const int64_t count = std::max<int64_t>(1, std::llround(shares_.fraction * static_cast<double>(n)));
    for (int64_t i = 0; i < count; ++i) {
      std::swap(places[static_cast<size_t>(i)], places[static_cast<size_t>(i + below(n - i, random))]);
      const int64_t t = places[static_cast<size_t>(i)];
      chosen[t] = 1;
      const double share = static_cast<double>(random() >> 11) * 0x1p-53;
      if (share < shares_.masked) {
        tokens[t] = mask_;
      } else if (share < shares_.masked + shares_.random) {
        tokens[t] = ordinary_[static_cast<size_t>(below(static_cast<int64_t>(ordinary_.size()), random))];
      }
    }
  }
  return hidden;
}

}  // namespace lineal
