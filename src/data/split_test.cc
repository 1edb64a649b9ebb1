#include "data/split.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "data/shuffle.h"
#include "testing/counting_store.h"
#include "testing/testing.h"

namespace lineal {
namespace {

std::set<int64_t> begins(const Part& part) {
  std::set<int64_t> result;
  for (const TokenSpan& document : part.documents) result.insert(document.begin);
  return result;
}

std::vector<std::pair<int64_t, int64_t>> spans(const Part& part) {
  std::vector<std::pair<int64_t, int64_t>> result;
  for (const TokenSpan& document : part.documents) result.emplace_back(document.begin, document.end);
  return result;
}

using Spans = std::vector<std::pair<int64_t, int64_t>>;

TEST(Split, EveryDocumentIsInOnePart) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < 1009; ++i) sizes.push_back(i % 11);
  const auto store = counting_store(sizes);
  const Split parts = split(store, 0.2, 3);
  std::vector<TokenSpan> all = parts.train.documents;
  all.insert(all.end(), parts.validation.documents.begin(), parts.validation.documents.end());
  std::sort(all.begin(), all.end(), [](const TokenSpan& a, const TokenSpan& b) { return a.begin < b.begin; });
  int64_t end = 0;
  for (const TokenSpan& document : all) {
    EXPECT_EQ(document.begin, end);
    EXPECT_GT(document.size(), 0);
    end = document.end;
  }
  EXPECT_EQ(end, store->size());
  EXPECT_EQ(parts.train.tokens() + parts.validation.tokens(), store->size());
  EXPECT_EQ(parts.train.store, store);
  // 917 documents with text: within four deviations of a fifth.
  EXPECT_NEAR(static_cast<double>(parts.validation.documents.size()), 0.2 * 917, 4 * 12.1);
  EXPECT_TRUE(std::is_sorted(parts.train.documents.begin(), parts.train.documents.end(),
                             [](const TokenSpan& a, const TokenSpan& b) { return a.begin < b.begin; }));
}

TEST(Split, DependsOnTheSeedAndNothingElse) {
  const auto store = counting_store(std::vector<int64_t>(301, 5));
  EXPECT_EQ(begins(split(store, 0.3, 3).validation), begins(split(store, 0.3, 3).validation));
  EXPECT_NE(begins(split(store, 0.3, 3).validation), begins(split(store, 0.3, 4).validation));
}

TEST(Split, ALargerFractionTakesMore) {
  const auto store = counting_store(std::vector<int64_t>(301, 5));
  const auto small = begins(split(store, 0.1, 3).validation), large = begins(split(store, 0.4, 3).validation);
  EXPECT_TRUE(std::includes(large.begin(), large.end(), small.begin(), small.end()));
  EXPECT_LT(small.size(), large.size());
}

TEST(Split, MoreDocumentsMoveNone) {
  const auto few = split(counting_store(std::vector<int64_t>(301, 5)), 0.3, 3);
  const auto more = split(counting_store(std::vector<int64_t>(401, 5)), 0.3, 3);
  const auto small = begins(few.validation), large = begins(more.validation);
  EXPECT_TRUE(std::includes(large.begin(), large.end(), small.begin(), small.end()));
  const auto small_train = begins(few.train), large_train = begins(more.train);
  EXPECT_TRUE(std::includes(large_train.begin(), large_train.end(), small_train.begin(), small_train.end()));
}

TEST(Split, EqualTextsGoTogether) {
  const auto counted = counting_store(std::vector<int64_t>(100, 3));
  const Tensor ends = at::arange(3, 303, 3, at::kLong);
  const auto store = std::make_shared<TokenStore>(at::arange(300, at::kInt), ends, at::arange(100, at::kLong) % 10);
  const Split parts = split(store, 0.4, 3);
  ASSERT_FALSE(parts.validation.documents.empty());
  const auto validation = begins(parts.validation);
  for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(validation.count(3 * i), validation.count(3 * (i % 10))) << i;
}

TEST(Split, NeitherPartIsEmpty) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (const double fraction : {1e-9, 0.5, 1 - 1e-9}) {
      for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{5, 7}, {1, 5, 1, 1, 3, 0}}) {
        const Split parts = split(counting_store(sizes), fraction, seed);
        for (const Part* part : {&parts.train, &parts.validation}) {
          EXPECT_TRUE(std::any_of(part->documents.begin(), part->documents.end(),
                                  [](const TokenSpan& document) { return document.size() >= 2; }))
              << seed << ' ' << fraction;
        }
        int64_t tokens = 0;
        for (const int64_t size : sizes) tokens += size;
        EXPECT_EQ(parts.train.tokens() + parts.validation.tokens(), tokens);
      }
    }
  }
}

TEST(Split, OneDocumentIsCut) {
  const auto parts = [](const std::vector<int64_t>& sizes, double fraction) {
    return split(counting_store(sizes), fraction, 3);
  };
  EXPECT_EQ(spans(parts({101}, 0.1).train), Spans({{0, 91}}));
  EXPECT_EQ(spans(parts({101}, 0.1).validation), Spans({{91, 101}}));
  EXPECT_EQ(spans(parts({0, 101, 0}, 0.25).validation), Spans({{76, 101}}));
  EXPECT_EQ(spans(parts({101}, 1e-9).validation), Spans({{99, 101}}));
  EXPECT_EQ(spans(parts({101}, 1 - 1e-9).train), Spans({{0, 2}}));
  EXPECT_EQ(spans(parts({4}, 0.5).train), Spans({{0, 2}}));
}

TEST(Split, NoValidationWhenNoneIsWanted) {
  const Split parts = split(counting_store({5, 0, 7}), 0, 3);
  EXPECT_EQ(spans(parts.train), Spans({{0, 5}, {5, 12}}));
  EXPECT_TRUE(parts.validation.documents.empty());
  EXPECT_EQ(spans(split(counting_store({2}), 0, 3).train), Spans({{0, 2}}));
}

TEST(Split, RefusesTooLittleAndBadFractions) {
  const auto refuses = [](const std::vector<int64_t>& sizes, double fraction, const std::string& part) {
    return throws_error([&] { split(counting_store(sizes), fraction, 3); }, {"split: ", part});
  };
  EXPECT_TRUE(refuses({3}, 0.5, "has 3, expected at least 4"));
  EXPECT_TRUE(refuses({1, 1, 1}, 0.5, "no document has two tokens, of 3"));
  EXPECT_TRUE(refuses({1}, 0, "no document has two tokens"));
  EXPECT_TRUE(refuses({}, 0.5, "no document has two tokens, of 0"));
  EXPECT_TRUE(refuses({50}, 1, "fraction is 1, expected"));
  EXPECT_TRUE(refuses({50}, -0.1, "fraction is -0.1"));
  EXPECT_TRUE(refuses({50}, std::nan(""), "fraction is nan"));
}

TEST(Split, TheDocumentNearestToTheThresholdChangesSides) {
  const auto store = counting_store(std::vector<int64_t>(7, 5));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::map<uint64_t, int64_t> places;  // a document is taken when this is below fraction * 2^64
    for (int64_t i = 0; i < 7; ++i) places[mix(seed, store->hash(i))] = store->document(i).begin;
    EXPECT_EQ(begins(split(store, 1e-9, seed).validation), std::set<int64_t>{places.begin()->second});
    EXPECT_EQ(begins(split(store, 1 - 1e-9, seed).train), std::set<int64_t>{places.rbegin()->second});
  }
}

TEST(Split, TestPart) {
  const auto store = counting_store(std::vector<int64_t>(1009, 5));
  const Split plain = split(store, 0.2, 3), parts = split(store, 0.2, 3, 0.1);
  EXPECT_EQ(spans(parts.validation), spans(plain.validation)) << "the other parts give nothing up for it";
  EXPECT_TRUE(plain.test.documents.empty());
  EXPECT_NEAR(static_cast<double>(parts.test.documents.size()), 0.1 * 1009, 4 * 9.6);
  std::set<int64_t> all = begins(parts.train);
  for (const Part* part : {&parts.validation, &parts.test}) {
    for (const int64_t begin : begins(*part)) EXPECT_TRUE(all.insert(begin).second);
  }
  EXPECT_EQ(all.size(), 1009u);
  EXPECT_EQ(begins(split(store, 0.2, 3, 0.1).test), begins(parts.test));
  EXPECT_NE(begins(split(store, 0.2, 4, 0.1).test), begins(parts.test));
  EXPECT_ERROR(split(store, 0.5, 3, 0.5), "test fraction is 0.5");
  EXPECT_ERROR(split(counting_store({5, 5, 5}), 0, 3, 1e-6), "none fell into the test part");
}

}  // namespace
}  // namespace lineal
