#include "data/masking.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/registry.h"
#include "data/document_batches.h"
#include "testing/counting_store.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t kMask = 27, kPad = 28;

Masking make_masking(const MaskingShares& shares = {}) {
  return {"test", "amino_acids", *find<TokenizerSpec>("amino_acids").make(), shares};
}

/// B rows: begin, letters, end, and padding of a fifth.
Batch proteins(int64_t B, int64_t T) {
  Tensor tokens = at::arange(B * T).mul(7919).remainder(25).view({B, T});
  const int64_t end = T - T / 5;
  tokens.select(1, 0).fill_(25);
  tokens.select(1, end - 1).fill_(26);
  tokens.slice(1, end).fill_(kPad);
  return {tokens, tokens.roll(-1, 1), at::ones({B, T}), {}};
}

TEST(Masking, SharesOfTheTokens) {
  const Batch batch = proteins(40, 1000);
  const Batch hidden = make_masking().hide(batch, 3, 0);
  const Tensor chosen = hidden.mask > 0, ordinary = batch.inputs < 25;
  EXPECT_TRUE(at::equal(hidden.targets, batch.inputs));
  EXPECT_FALSE(chosen.logical_and(ordinary.logical_not()).any().item<bool>()) << "special tokens are never chosen";
  const Tensor of_row = chosen.sum(1), expected = at::full_like(of_row, std::lround(0.15 * 798));
  EXPECT_TRUE(at::equal(of_row, expected)) << of_row;
  EXPECT_TRUE(
      at::equal(hidden.inputs.masked_select(chosen.logical_not()), batch.inputs.masked_select(chosen.logical_not())));
  const Tensor after = hidden.inputs.masked_select(chosen), before = batch.inputs.masked_select(chosen);
  const auto n = static_cast<double>(after.numel());
  const auto share = [&](const Tensor& which) { return which.sum().item<double>() / n; };
  const double deviation = std::sqrt(0.25 / n);
  EXPECT_NEAR(share(after == kMask), 0.8, 4 * deviation);
  EXPECT_NEAR(share(after == before), 0.1 + 0.1 / 25, 4 * deviation);
  const Tensor random = after.masked_select((after != kMask).logical_and(after != before));
  EXPECT_LT(random.max().item<int64_t>(), 25);
  EXPECT_EQ(std::get<0>(at::_unique(random)).numel(), 25) << "every letter is drawn";
  // Places are uniform: the mean of chosen places is that of all.
  const Tensor places = at::arange(1000).expand({40, 1000}).masked_select(chosen).to(at::kDouble);
  EXPECT_NEAR(places.mean().item<double>(), 400, 4 * 230 / std::sqrt(n));
}

TEST(Masking, DependsOnSeedAndRowAlone) {
  const Masking masking = make_masking();
  const Batch batch = proteins(6, 200);
  const Batch all = masking.hide(batch, 3, 10);
  for (int64_t b = 0; b < 6; b += 2) {
    const Batch two{
        batch.inputs.slice(0, b, b + 2), batch.targets.slice(0, b, b + 2), batch.mask.slice(0, b, b + 2), {}};
    const Batch part = masking.hide(two, 3, 10 + b);
    EXPECT_TRUE(at::equal(part.inputs, all.inputs.slice(0, b, b + 2)));
    EXPECT_TRUE(at::equal(part.mask, all.mask.slice(0, b, b + 2)));
  }
  EXPECT_FALSE(at::equal(masking.hide(batch, 4, 10).mask, all.mask));
  EXPECT_FALSE(at::equal(masking.hide(batch, 3, 11).mask, all.mask));
}

TEST(Masking, OtherShares) {
  const Batch batch = proteins(5, 100);
  const Batch kept = make_masking({0.5, 0, 0}).hide(batch, 1, 0);
  EXPECT_TRUE(at::equal(kept.inputs, batch.inputs));
  EXPECT_TRUE((kept.mask.sum(1) == 39).all().item<bool>());
  const Batch masked = make_masking({1, 1, 0}).hide(batch, 1, 0);
  EXPECT_TRUE(at::equal(masked.inputs == kMask, batch.inputs < 25));
  const Batch least = make_masking({1e-6, 1, 0}).hide(batch, 1, 0);
  EXPECT_TRUE((least.mask.sum(1) == 1).all().item<bool>());
  Batch none = batch;
  none.inputs = at::full_like(batch.inputs, kPad);
  EXPECT_EQ(make_masking().hide(none, 1, 0).mask.sum().item<double>(), 0);
}

TEST(Masking, Mistakes) {
  EXPECT_TRUE(throws_error([] { Masking("train", "bytes", *find<TokenizerSpec>("bytes").make(), {}); },
                           {"train", "bytes", "mask", "amino_acids"}));
  EXPECT_ERROR(make_masking({0, 0.8, 0.1}), "fraction");
  EXPECT_ERROR(make_masking({0.1, 0.8, 0.3}), "at most 1");
}

TEST(DocumentBatches, EveryDocumentOnceAnEpoch) {
  const auto store = counting_store({3, 5, 1, 2, 9, 4, 0, 6});
  for (const bool shifted : {true, false}) {
    const DocumentBatches batches(whole(store), {.B = 2, .T = 5, .pad = 99, .shifted = shifted}, 7);
    EXPECT_EQ(batches.documents(), 6);
    EXPECT_EQ(batches.cut(), shifted ? 1 : 2);
    std::set<std::vector<int64_t>> orders;
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int64_t> firsts;
      for (int64_t step = 3 * epoch; step < 3 * epoch + 3; ++step) {
        const Batch batch = batches.at(step);
        for (int64_t b = 0; b < 2; ++b) firsts.push_back(batch.inputs[b][0].item<int64_t>());
      }
      orders.insert(firsts);
      std::sort(firsts.begin(), firsts.end());
      EXPECT_EQ(firsts, std::vector<int64_t>({0, 3, 9, 11, 20, 24}));
    }
    EXPECT_EQ(orders.size(), 3u);
    EXPECT_TRUE(at::equal(batches.at(4).inputs, batches.at(4).inputs));
  }
}

TEST(DocumentBatches, Rows) {
  const auto store = counting_store({3, 7, 1, 2});
  const DocumentBatches shifted(whole(store), {.B = 2, .T = 5, .pad = 99, .shifted = true}, 7);
  const Batch first = shifted.in_order(0), last = shifted.in_order(1);
  const auto row = [](std::vector<int64_t> values) { return at::tensor(values, at::kLong); };
  EXPECT_TRUE(at::equal(first.inputs, at::stack({row({0, 1, 2, 99, 99}), row({3, 4, 5, 6, 7})}))) << first.inputs;
  EXPECT_TRUE(at::equal(first.targets, at::stack({row({1, 2, 99, 99, 99}), row({4, 5, 6, 7, 8})}))) << first.targets;
  EXPECT_TRUE(at::equal(first.mask, at::stack({row({1, 1, 0, 0, 0}), row({1, 1, 1, 1, 1})}).to(at::kFloat)));
  EXPECT_TRUE(at::equal(first.segments.starts, at::stack({row({1, 0, 1, 0, 0}), row({1, 0, 0, 0, 0})}).to(at::kBool)));
  EXPECT_TRUE(at::equal(first.segments.padding, at::stack({row({0, 0, 1, 1, 1}), row({0, 0, 0, 0, 0})}).to(at::kBool)));
  EXPECT_EQ(shifted.steps_in_order(), 2);
  EXPECT_TRUE(at::equal(last.inputs, at::stack({row({11}), row({99})}))) << last.inputs;
  EXPECT_TRUE(at::equal(last.mask, at::stack({row({1}), row({0})}).to(at::kFloat)));

  const DocumentBatches plain(whole(store), {.B = 2, .T = 5, .pad = 99, .shifted = false}, 7);
  EXPECT_TRUE(at::equal(plain.in_order(0).inputs, at::stack({row({0, 1, 2, 99, 99}), row({3, 4, 5, 6, 7})})));
  EXPECT_TRUE(at::equal(plain.in_order(0).targets, plain.in_order(0).inputs));
  EXPECT_TRUE(
      at::equal(plain.in_order(0).mask, at::stack({row({1, 1, 1, 0, 0}), row({1, 1, 1, 1, 1})}).to(at::kFloat)));
  EXPECT_ERROR(plain.in_order(2), "0 to 1");
  EXPECT_ERROR(DocumentBatches(whole(counting_store({1, 0})), {.B = 1, .T = 3}, 0), "two tokens");
}

}  // namespace
}  // namespace lineal
