#include "bench/cell.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <csignal>

#include "bench/mixers.h"
#include "core/error.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

TEST(Cell, ReturnsWhatTheChildComputedAndItsMistakes) {
  EXPECT_EQ(in_child([] {
              return Json{{"answer", std::string(70001, 'x')}};
            })["answer"]
                .get<std::string>()
                .size(),
            70001);
  EXPECT_TRUE(throws_error([] { in_child([]() -> Json { fail("cell: no such thing"); }); }, {"cell: no such thing"}));
  EXPECT_THROW(in_child([]() -> Json { throw std::logic_error("a mistake of ours"); }), std::runtime_error);
  EXPECT_THROW(in_child([]() -> Json { return {{"signal", std::raise(SIGTERM)}}; }), std::runtime_error);
  EXPECT_EQ(in_child([]() -> Json {
              return {{"signal", std::raise(SIGKILL)}};
            })["note"],
            "ended by signal 9, perhaps for want of memory");
}

TEST(Cell, TooMuchMemoryEndsTheChildAlone) {
  const Json found = in_child([] { return Json{{"bytes", at::zeros({int64_t{1} << 44}).nbytes()}}; });
  ASSERT_TRUE(found.contains("note"));
  EXPECT_NE(found["note"].get<std::string>().find("MiB free"), std::string::npos) << found.dump();
}

TEST(Cell, AChildsPeakIsItsOwn) {
  constexpr int64_t kBytes = 96 << 20;
  const auto peak_of = [](int64_t bytes) {
    return in_child([bytes] {
             const int64_t before = resident_bytes();
             const at::Tensor touched = at::ones({bytes}, at::kByte);
             return Json{{"peak", peak_bytes() - before}};
           })["peak"]
        .get<int64_t>();
  };
  EXPECT_GE(peak_of(kBytes), kBytes);
  EXPECT_LT(peak_of(4099), kBytes / 2);
}

TEST(Cell, TheMedianOfRunsAfterTheFirst) {
  int runs = 0;
  const double seconds = median_seconds([&] { ++runs; }, /*budget=*/3600, /*most=*/7);
  EXPECT_EQ(runs, 8);
  EXPECT_GE(seconds, 0);
  runs = 0;
  median_seconds([&] { ++runs; }, /*budget=*/0);
  EXPECT_EQ(runs, 1);
}

TEST(Mixers, CountsTheStatesBytes) {
  const auto state_bytes = [](const char* plan, int64_t T) {
    const MixerCell cell{.layers = parse_plan(plan), .B = 2, .T = T, .D = 24, .budget = 0};
    return in_child([&] { return measure(cell); }).at("state_bytes").get<int64_t>();
  };
  // B (2 H (K^2 + K) floats + a position), with H = 3, K = 8
  EXPECT_EQ(state_bytes("ttt_linear(num_attention_heads=3)", 5), 2 * (4 * 2 * 3 * (64 + 8) + 8));
  EXPECT_EQ(state_bytes("ttt_linear(num_attention_heads=3)", 37), 2 * (4 * 2 * 3 * (64 + 8) + 8));
}

TEST(Mixers, LeavesOutWhatIsNotAsked) {
  const MixerCell cell{.layers = parse_plan("ttt_linear"), .T = 9, .D = 24, .budget = 0, .train = false};
  const Json found = in_child([&] { return measure(cell); });
  EXPECT_TRUE(found.contains("prefill") && found.contains("decode"));
  EXPECT_FALSE(found.contains("train"));
}

}  // namespace
}  // namespace lineal
