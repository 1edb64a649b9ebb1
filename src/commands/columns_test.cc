#include "commands/columns.h"

#include <gtest/gtest.h>

namespace lineal {
namespace {

TEST(Columns, AreAsWideAsTheirWidestKnownCell) {
  const Columns columns({"name", "us", "GB/s"}, {{"swiglu", "12345.5"}, {"op", "1"}});
  EXPECT_EQ(columns.titles(), "name         us  GB/s\n");
  EXPECT_EQ(columns.line({"swiglu", "12345.5", "1.0"}), "swiglu  12345.5   1.0\n");
  EXPECT_EQ(columns.line({"op", "1", "20.0"}), "op            1  20.0\n");
}

TEST(Columns, WiderCellsKeepTheirDistance) {
  const Columns columns({"a", "b", "c"});
  EXPECT_EQ(columns.line({"name", "1234567", "1234567", "a note"}), "name  1234567  1234567  a note\n");
}

TEST(Columns, NumbersOfARowAreScaledAndMissingOnesDashes) {
  constexpr NumberColumn kNumbers[] = {{"share", "share", "%.0f", 100}, {"GB/s", "gbytes", "%.2f"}};
  EXPECT_EQ(titles_of({"name"}, kNumbers), (Cells{"name", "share", "GB/s"}));
  EXPECT_EQ(cells_of({"op"}, kNumbers, {{"share", 0.25}}), (Cells{"op", "25", "-"}));
}

TEST(Columns, OneThingIsNotMany) {
  EXPECT_EQ(counted(1, "thread"), "1 thread");
  EXPECT_EQ(counted(2, "thread"), "2 threads");
}

}  // namespace
}  // namespace lineal
