#include "bench/repeat.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/error.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

TEST(Repeat, TimesEachManyTimes) {
  for (const int round : {1, 2}) {  // what one call has registered is not in the next
    std::vector<int> runs(3);
    std::vector<Repeated> computations;
    for (size_t i = 0; i < runs.size(); ++i) {
      computations.push_back({text("computation ", i), [&runs, i] { ++runs[i]; }});
    }
    const auto times = repeat(computations, 0.01);
    ASSERT_EQ(times.size(), runs.size()) << round;
    for (size_t i = 0; i < runs.size(); ++i) {
      EXPECT_GT(runs[i], 7) << i;
      EXPECT_GT(times[i].least, 0) << i;
      EXPECT_LE(times[i].least, times[i].median) << i;
      EXPECT_LE(times[i].median, times[i].most) << i;
    }
  }
}

TEST(Repeat, TellsWhatRunsAndHowFarItIs) {
  std::vector<std::string> names;
  std::vector<double> fractions;
  repeat({{"one", [] {}}, {"other", [] {}}}, 0.01,
         [&](const std::string& name, double fraction) { names.push_back(name), fractions.push_back(fraction); });
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), (std::set<std::string>{"one", "other"}));
  EXPECT_TRUE(std::is_sorted(fractions.begin(), fractions.end()));
  EXPECT_GE(fractions.front(), 0);
  EXPECT_LT(fractions.back(), 1);
  EXPECT_GT(fractions.back(), fractions.front());
}

TEST(Repeat, AMistakeEndsItBeforeAnyIsTimed) {
  int runs = 0;
  const std::vector<Repeated> computations = {{"good", [&] { ++runs; }}, {"bad", [] { fail("bad: no such kernel"); }}};
  EXPECT_TRUE(throws_error([&] { repeat(computations, 0.01); }, {"bad: no such kernel"}));
  EXPECT_EQ(runs, 1);
  int alone = 0;
  repeat({{"alone", [&] { ++alone; }}}, 0.01);
  EXPECT_EQ(runs, 1);  // nothing of the call that failed is left
  EXPECT_GT(alone, 7);
}

}  // namespace
}  // namespace lineal
