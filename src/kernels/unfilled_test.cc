#include "kernels/unfilled.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>
#include <vector>

#include "core/memory.h"

namespace lineal::kernels {
namespace {

constexpr int64_t kFloats = int64_t{16} << 20;
const at::TensorOptions kOptions = at::kFloat;

/// Pages that the system brought so far.
int64_t faults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

/// With LibTorch's own allocator, which tests of other things have filled with NaN.
class Unfilled : public testing::Test {
 protected:
  Unfilled() { c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), kPriority); }
  ~Unfilled() override { c10::SetCPUAllocator(before_, kPriority); }

 private:
  static constexpr uint8_t kPriority = 100;
  c10::Allocator* before_ = c10::GetCPUAllocator();
};

TEST_F(Unfilled, TakesTheMemoryOfTheLastOfItsSize) {
  unfilled({kFloats}, kOptions).fill_(1);
  const int64_t before = faults();
  const at::Tensor again = unfilled({4, kFloats / 4}, kOptions).fill_(2);
  EXPECT_LT(faults() - before, 16);
  EXPECT_EQ(again.sum(at::kDouble).item<double>(), 2.0 * kFloats);
}

TEST_F(Unfilled, ResultsThatLiveShareNothing) {
  std::vector<at::Tensor> all;
  for (int i = 0; i < 4; ++i) all.push_back(unfilled({kFloats}, kOptions).fill_(i));
  all.erase(all.begin() + 1);
  all.push_back(unfilled({kFloats}, kOptions).fill_(4));
  const double values[] = {0, 2, 3, 4};
  for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(all[i].eq(values[i]).all().item<bool>()) << i;
}

int64_t resident() { return proc_bytes("/proc/self/status", "VmRSS"); }

TEST_F(Unfilled, OfManySizesNoMoreStaysThanWasNeededAtOnce) {
  const int64_t before = resident();
  int64_t floats = kFloats;
  for (int i = 0; i < 64; ++i) unfilled({floats += int64_t{1} << 20}, kOptions).fill_(1);
  EXPECT_LT(resident() - before, (floats + kFloats) * int64_t{sizeof(float)});
}

TEST_F(Unfilled, WhatNoneWantsGoesBack) {
  unfilled({4 * kFloats}, kOptions).fill_(1);
  const int64_t before = resident();
  for (int i = 0; i < 1200; ++i) unfilled({int64_t{2} << 20}, kOptions);
  EXPECT_LT(resident(), before - 3 * kFloats * int64_t{sizeof(float)});
}

TEST_F(Unfilled, WhatWaitsCanBeGivenBackAtOnce) {
  const at::Tensor lives = unfilled({kFloats}, kOptions).fill_(1);
  unfilled({4 * kFloats}, kOptions).fill_(1);
  const int64_t before = resident();
  empty_cache();
  EXPECT_LT(resident(), before - 3 * kFloats * int64_t{sizeof(float)});
  EXPECT_EQ(lives.sum(at::kDouble).item<double>(), 1.0 * kFloats);
  unfilled({4 * kFloats}, kOptions).fill_(1);
  EXPECT_GT(resident(), before - kFloats * int64_t{sizeof(float)}) << "it waits again";
}

TEST_F(Unfilled, ThreadsShareNothing) {
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([t, &wrong] {
      for (int i = 0; i < 1000; ++i) {
        const at::Tensor x = unfilled({(int64_t{1} << 20) * (1 + i % 3)}, kOptions);
        auto* first = x.mutable_data_ptr<float>();
        *first = static_cast<float>(t);
        std::this_thread::yield();
        wrong += *first != static_cast<float>(t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Unfilled, CanBeResized) {
  at::Tensor x = unfilled({kFloats}, kOptions).fill_(1);
  x.resize_({2 * kFloats});
  EXPECT_EQ(x.slice(0, 0, kFloats).sum(at::kDouble).item<double>(), 1.0 * kFloats);
}

TEST(UnfilledInTests, IsNaN) { EXPECT_TRUE(unfilled({kFloats}, kOptions).isnan().all().item<bool>()); }

TEST_F(Unfilled, IsOfTheAskedType) {
  for (const int64_t n : {int64_t{3}, kFloats}) {
    const at::Tensor x = unfilled({1, n}, at::TensorOptions().dtype(at::kBFloat16));
    EXPECT_EQ(x.dtype(), at::kBFloat16);
    EXPECT_EQ(x.sizes(), at::IntArrayRef({1, n}));
    EXPECT_TRUE(x.is_contiguous());
    EXPECT_FALSE(x.requires_grad());
  }
}

}  // namespace
}  // namespace lineal::kernels
