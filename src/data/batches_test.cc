#include "data/batches.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <thread>

#include "testing/counting_store.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Ids = std::vector<int64_t>;

Ids list(const Tensor& tensor) {
  const Tensor flat = tensor.to(at::kLong).contiguous().flatten();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

bool same(const Batch& a, const Batch& b) {
  return at::equal(a.inputs, b.inputs) && at::equal(a.targets, b.targets) && at::equal(a.mask, b.mask) &&
         a.segments.none() == b.segments.none() &&
         (a.segments.none() || at::equal(a.segments.starts, b.segments.starts));
}

/// Sizes, types, targets one after inputs, and starts and mask as the ids tell them: in a counting store the token
/// after i in its document is i + 1.
void check(const Batch& batch, int64_t B, int64_t T, const std::vector<int64_t>& sizes) {
  ASSERT_EQ(batch.inputs.sizes(), at::IntArrayRef({B, T}));
  ASSERT_EQ(batch.targets.sizes(), at::IntArrayRef({B, T}));
  ASSERT_EQ(batch.mask.sizes(), at::IntArrayRef({B, T}));
  EXPECT_EQ(batch.inputs.scalar_type(), at::kLong);
  EXPECT_EQ(batch.targets.scalar_type(), at::kLong);
  EXPECT_EQ(batch.mask.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(batch.inputs.slice(1, 1, T), batch.targets.slice(1, 0, T - 1)));
  std::set<int64_t> first;
  int64_t end = 0;
  for (const int64_t size : sizes) first.insert(end), end += size;
  const Ids inputs = list(batch.inputs), targets = list(batch.targets);
  Tensor mask = at::zeros({B * T}), starts = at::zeros({B * T}, at::kBool);
  for (int64_t i = 0; i < B * T; ++i) {
    const bool follows = targets[i] == inputs[i] + 1 && first.count(targets[i]) == 0;
    mask[i] = follows ? 1 : 0;
    if (i % T != T - 1) starts[i + 1] = !follows;
  }
  EXPECT_TRUE(at::equal(batch.mask.flatten(), mask));
  EXPECT_EQ(batch.segments.none(), !starts.any().item<bool>());
  if (batch.segments.none()) return;
  EXPECT_TRUE(at::equal(batch.segments.starts.flatten(), starts));
}

TEST(Batches, EveryTokenOfAnEpochOnce) {
  const std::vector<int64_t> sizes = {13, 1, 31, 5, 0, 7, 2, 11};  // 70
  const Batches batches(whole(counting_store(sizes)), 2, 7, 5);
  std::vector<Ids> epochs;
  for (int64_t e = 0; e < 3; ++e) {
    Ids seen;
    for (int64_t step = 5 * e; step < 5 * e + 5; ++step) {
      EXPECT_EQ(batches.epoch(step), e);
      const Batch batch = batches.at(step);
      check(batch, 2, 7, sizes);
      for (const int64_t id : list(batch.inputs)) seen.push_back(id);
    }
    epochs.push_back(seen);
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(seen, list(at::arange(70)));
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST(Batches, EveryTokenOfEveryEpochOnceWhateverTheSizes) {
  const std::vector<int64_t> sizes = {41, 3, 17, 30, 1, 9};  // 101
  for (const int64_t T : {1, 7, 100, 101, 102, 303, 1009}) {
    for (const int64_t B : {1, 3}) {
      // 101 * B chunks of T are B * T epochs, whole ones.
      const Batches batches(whole(counting_store(sizes)), B, T, 5);
      std::map<int64_t, int64_t> seen;
      for (int64_t step = 0; step < 101; ++step) {
        const Batch batch = batches.at(step);
        if (step < 11) check(batch, B, T, sizes);
        for (const int64_t id : list(batch.inputs)) ++seen[id];
      }
      ASSERT_EQ(seen.size(), 101u);
      for (const auto& [id, count] : seen) EXPECT_EQ(count, B * T) << id << " T=" << T;
    }
  }
}

TEST(Batches, FunctionOfSeedAndStep) {
  const auto store = counting_store({41, 3, 17, 30, 1, 9});
  const Batches batches(whole(store), 3, 11, 5);
  std::vector<Batch> forwards;
  for (int64_t step = 0; step < 40; ++step) forwards.push_back(batches.at(step));
  for (int64_t step = 39; step >= 0; --step) EXPECT_TRUE(same(batches.at(step), forwards[step])) << step;
  EXPECT_TRUE(same(Batches(whole(store), 3, 11, 5).at(37), forwards[37]));
  EXPECT_FALSE(same(Batches(whole(store), 3, 11, 6).at(37), forwards[37]));
  EXPECT_FALSE(same(forwards[0], forwards[1]));
}

TEST(Batches, SameFromManyThreads) {
  const auto store = counting_store({41, 3, 17, 30, 1, 9});
  const Batches batches(whole(store), 3, 11, 5), alone(whole(store), 3, 11, 5);
  std::vector<Batch> found(200);
  std::vector<std::thread> threads;
  for (size_t first = 0; first < 4; ++first) {
    threads.emplace_back([&, first] {
      for (size_t step = first; step < found.size(); step += 4) found[step] = batches.at(static_cast<int64_t>(step));
    });
  }
  for (auto& thread : threads) thread.join();
  for (size_t step = 0; step < found.size(); ++step) {
    EXPECT_TRUE(same(found[step], alone.at(static_cast<int64_t>(step)))) << step;
  }
}

TEST(Batches, RowsAreTheSameHoweverTheyAreBatched) {
  const auto store = counting_store({41, 3, 17, 30, 1, 9});
  const Batches one(whole(store), 1, 11, 5), five(whole(store), 5, 11, 5);
  for (int64_t step = 0; step < 6; ++step) {
    const Batch batch = five.at(step);
    for (int64_t b = 0; b < 5; ++b) EXPECT_TRUE(at::equal(batch.inputs[b], one.at(step * 5 + b).inputs[0]));
  }
}

TEST(Batches, DocumentsAreShuffledAndCutElsewhereEachEpoch) {
  std::vector<int64_t> sizes(64, 8);
  const Batches batches(whole(counting_store(sizes)), 1, 512, 5);  // an epoch a row
  std::set<Ids> orders;
  std::set<int64_t> phases;
  for (int64_t step = 0; step < 16; ++step) {
    Ids order;
    const Ids row = list(batches.at(step).inputs);
    for (const int64_t id : row) {
      if (id % 8 == 0) order.push_back(id / 8);
    }
    phases.insert(row.front() % 8);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 16u);
  EXPECT_GT(phases.size(), 4u);
  // Chunks are not read in the stream's order either.
  const Batches short_rows(whole(counting_store({4096})), 1, 8, 5);
  int64_t neighbours = 0;
  for (int64_t step = 1; step < 512; ++step) {
    neighbours += list(short_rows.at(step).inputs).front() == list(short_rows.at(step - 1).targets).back();
  }
  EXPECT_LT(neighbours, 10);
}

// The numbers themselves: an order that differs between machines or versions would break resuming.
TEST(Batches, Golden) {
  const Batch batch = Batches(whole(counting_store({13, 1, 31, 5, 7})), 2, 9, 12345).at(3);
  EXPECT_EQ(list(batch.inputs), Ids({11, 12, 14, 15, 16, 17, 18, 19, 20, 29, 30, 31, 32, 33, 34, 35, 36, 37}));
  EXPECT_EQ(list(batch.mask), Ids({1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}));
}

TEST(Batches, OneLongDocument) {
  const Batches batches(whole(counting_store({1000})), 2, 5, 5);
  int64_t starts = 0;
  for (int64_t step = 0; step < 100; ++step) {
    const Batch batch = batches.at(step);
    check(batch, 2, 5, {1000});
    starts += !batch.segments.none();
  }
  EXPECT_LE(starts, 2);  // the document's own and the epoch's
}

TEST(Batches, RowLongerThanTheCorpus) {
  const std::vector<int64_t> sizes = {5, 1, 3};
  const int64_t T = (1 << 20) + 1;
  const Batch batch = Batches(whole(counting_store(sizes)), 1, T, 5).at(3);
  const Tensor counts = at::bincount(batch.inputs.flatten());
  EXPECT_EQ(counts.numel(), 9);
  EXPECT_LE((counts.max() - counts.min()).item<int64_t>(), 2);
  EXPECT_EQ(batch.segments.starts.sum().item<int64_t>() + batch.mask.sum().item<int64_t>(),
            T - (batch.mask[0][-1].item<float>() == 0 ? 1 : 0));
}

TEST(Batches, OnlyThePartIsRead) {
  const auto store = counting_store({10, 20, 30});
  const Batches batches({store, {{10, 25}, {40, 60}}}, 3, 7, 5);
  std::set<int64_t> seen;
  for (int64_t step = 0; step < 20; ++step) {
    const Batch batch = batches.at(step);
    for (const Tensor& ids : {batch.inputs, batch.targets}) {
      for (const int64_t id : list(ids)) seen.insert(id);
    }
  }
  std::set<int64_t> expected;
  for (int64_t id = 10; id < 60; ++id) {
    if (id < 25 || id >= 40) expected.insert(id);
  }
  EXPECT_EQ(seen, expected);
}

TEST(Batches, RefusesBadSizesAndSteps) {
  const Part part = whole(counting_store({10}));
  const auto refuses = [](const Part& from, int64_t B, int64_t T, const std::string& message) {
    const auto random = throws_error([&] { Batches(from, B, T, 5); }, {"batches: ", message});
    return random ? throws_error([&] { SequentialBatches(from, B, T); }, {"batches: ", message}) : random;
  };
  EXPECT_TRUE(refuses(part, 0, 7, "B=0 sequences of T=7 tokens"));
  EXPECT_TRUE(refuses(part, 3, 0, "T=0"));
  EXPECT_TRUE(refuses(part, -3, -7, "B=-3"));
  EXPECT_TRUE(refuses(part, int64_t{1} << 40, int64_t{1} << 40, "expected"));
  EXPECT_TRUE(refuses(whole(counting_store({1, 0, 1})), 3, 7, "no document of this part has two tokens"));
  EXPECT_TRUE(refuses({part.store, {}}, 3, 7, "no document of this part has two tokens"));
  const Batches batches(part, 3, 7, 5);
  EXPECT_TRUE(throws_error([&] { batches.at(-1); }, {"step -1"}));
  EXPECT_TRUE(throws_error([&] { batches.at(int64_t{1} << 60); }, {"step 1152921504606846976"}));
  EXPECT_EQ(batches.at(int64_t{1} << 50).length(), 7);
  const SequentialBatches in_order(part, 3, 7);
  EXPECT_TRUE(throws_error([&] { in_order.at(-1); }, {"step -1"}));
  EXPECT_TRUE(throws_error([&] { in_order.at(in_order.steps()); }, {"step 1 of the part in order, expected 0 to 0"}));
}

TEST(SequentialBatches, EveryPredictionOnce) {
  const std::vector<int64_t> sizes = {13, 1, 31, 5, 0, 7, 2, 11};
  std::set<int64_t> first;
  int64_t end = 0;
  for (const int64_t size : sizes) first.insert(end), end += size;
  for (const int64_t B : {1, 3, 5, 69, 70, 101}) {
    for (const int64_t T : {1, 7, 69, 70, 1001}) {
      const SequentialBatches batches(whole(counting_store(sizes)), B, T);
      std::vector<Ids> lanes(static_cast<size_t>(B));
      std::set<int64_t> predicted;
      for (int64_t step = 0; step < batches.steps(); ++step) {
        const Batch batch = batches.at(step);
        ASSERT_EQ(batch.size(), B);
        ASSERT_EQ(batch.length() == T || step == batches.steps() - 1, true);
        const Ids inputs = list(batch.inputs), targets = list(batch.targets), mask = list(batch.mask);
        Ids starts(inputs.size(), 0);
        if (!batch.segments.none()) starts = list(batch.segments.starts);
        for (size_t i = 0; i < inputs.size(); ++i) {
          Ids& lane = lanes[i / static_cast<size_t>(batch.length())];
          const bool padding = targets[i] == 0;  // no token is predicted from place 0's left
          if (!padding) {
            EXPECT_EQ(targets[i], inputs[i] + 1);
            EXPECT_EQ(inputs[i], lane.empty() ? inputs[i] : lane.back() + 1);
            EXPECT_EQ(starts[i] == 1, !lane.empty() && first.count(inputs[i]) == 1) << inputs[i];
            lane.push_back(inputs[i]);
          }
          EXPECT_EQ(mask[i] == 1, !padding && first.count(targets[i]) == 0) << inputs[i];
          EXPECT_TRUE(mask[i] == 0 || predicted.insert(targets[i]).second) << targets[i];
        }
      }
      std::set<int64_t> expected;
      for (int64_t id = 0; id < 70; ++id) {
        if (first.count(id) == 0) expected.insert(id);
      }
      EXPECT_EQ(predicted, expected) << B << ' ' << T;
    }
  }
}

}  // namespace
}  // namespace lineal
