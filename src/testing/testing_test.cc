// The tests' own tools: each comparison must reject what it is there to reject.
#include "testing/testing.h"

#include <ATen/ATen.h>

#include <limits>

#include "core/error.h"

namespace lineal {
namespace {

const double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(Testing, FreshMemoryIsNaN) {
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    EXPECT_TRUE(at::empty({37, 11}, type).isnan().all().item<bool>());
  }
  EXPECT_TRUE(at::empty_strided({5, 3}, {1, 7}, at::kFloat).isnan().all().item<bool>());
}

/// What the two tests below draw first. Whichever runs second must get what the first got.
void check_first_draw() {
  static Tensor first;
  const Tensor drawn = at::randn({5});
  if (!first.defined()) first = drawn;
  EXPECT_TRUE(at::equal(drawn, first));
  at::randn({17});
}

TEST(Testing, EveryTestStartsFromTheSeed) { check_first_draw(); }

TEST(Testing, EveryTestStartsFromTheSeedWhateverRanBefore) { check_first_draw(); }

TEST(Testing, DifferenceIsRelativeToTheLargestValue) {
  const Tensor expected = at::tensor({100.0, 1.0, 0.0});
  EXPECT_EQ(difference(expected + 0.0009, expected, 1e-5), "");
  EXPECT_NE(difference(expected + 0.0011, expected, 1e-5), "");
  EXPECT_NE(difference(at::ones({3}), at::zeros({3}), 1e-5), "");
  EXPECT_EQ(difference(at::zeros({3}), at::zeros({3}), 0), "");
}

TEST(Testing, NaNAndOtherShapesNeverPass) {
  const Tensor good = at::ones({3}, at::kDouble), bad = at::tensor({1.0, kNaN, 1.0}, at::kDouble);
  for (const auto compare : {difference, rms_difference}) {
    EXPECT_NE(compare(bad, good, 1e9), "");
    EXPECT_NE(compare(good, bad, 1e9), "");
    EXPECT_NE(compare(bad, bad, 1e9), "");
    EXPECT_NE(compare(good.unsqueeze(0), good, 1e9), "");
    EXPECT_NE(compare(Tensor(), good, 1e9), "");
  }
  EXPECT_NE(bit_difference(bad, bad), "");
  EXPECT_NE(bit_difference(good.to(at::kFloat), good), "");
  EXPECT_NE(bit_difference(good + std::numeric_limits<double>::epsilon(), good), "");
  EXPECT_EQ(bit_difference(good, good), "");
}

TEST(Testing, RootMeanSquareCountsEveryElement) {
  const Tensor expected = at::ones({100}), actual = expected.clone();
  actual[3] += 0.09;  // 0.009 over a hundred
  EXPECT_EQ(rms_difference(actual, expected, 0.01), "");
  EXPECT_NE(rms_difference(actual, expected, 0.008), "");
  EXPECT_NE(difference(actual, expected, 0.01), "");
}

TEST(Testing, FirstTenMismatchesWithIndices) {
  const Tensor expected = at::zeros({3, 5}), actual = expected.clone();
  actual.select(0, 1).fill_(7);
  actual.select(0, 2).fill_(8);
  const std::string found = difference(actual, expected, 1e-5);
  EXPECT_NE(found.find("10 of 15 differ"), std::string::npos) << found;
  EXPECT_NE(found.find("[1, 0] 7, expected 0"), std::string::npos) << found;
  EXPECT_NE(found.find("[2, 4] 8, expected 0"), std::string::npos) << found;
  EXPECT_NE(difference(actual + 1, expected, 1e-5).find("and 5 more"), std::string::npos);
}

TEST(Testing, GradientCheckAcceptsTheTrueAndRejectsTheFalse) {
  const std::vector<Tensor> inputs = {normal({3, 5}, 1, at::kDouble), normal({5, 7}, 2, at::kDouble)};
  const auto f = [](const std::vector<Tensor>& in) {
    return std::vector<Tensor>{at::matmul(in[0], in[1]).tanh(), in[0].sum()};
  };
  EXPECT_EQ(gradient_difference(f, inputs), "");
  const auto forgets_a_path = [](const std::vector<Tensor>& in) {
    return std::vector<Tensor>{at::matmul(in[0], in[1].detach()).tanh() + in[1].sum() * 1e-3};
  };
  EXPECT_NE(gradient_difference(forgets_a_path, inputs, {"q", "k"}).find("gradient of k"), std::string::npos);
  const auto cuts_everything = [](const std::vector<Tensor>& in) { return std::vector<Tensor>{in[0].detach()}; };
  EXPECT_NE(gradient_difference(cuts_everything, inputs), "");
  EXPECT_NE(gradient_difference(f, {inputs[0].to(at::kFloat), inputs[1]}), "");
}

TEST(Testing, ExpectErrorSeesTheMessage) { EXPECT_ERROR(fail("rope: K is ", 3), "K is 3"); }

}  // namespace
}  // namespace lineal
