#include "mixers/derived.h"

#include <ATen/ATen.h>

#include "testing/testing.h"

namespace lineal {
namespace {

TEST(Derived, FollowsItsParameter) {
  Tensor parameter = at::tensor({1.0f, 2.0f}).requires_grad_();
  Derived derived;
  int computed = 0;
  const auto twice = [&] {
    return derived(parameter, [&](const Tensor& x) {
      ++computed;
      return 2 * x;
    });
  };
  EXPECT_TRUE(twice().requires_grad());
  at::NoGradGuard no_grad;
  const auto expect = [&](int times) {
    for (int i = 0; i < 2; ++i) EXPECT_CLOSE(twice(), 2 * parameter, 0);
    EXPECT_EQ(computed, times);
  };
  expect(2);
  parameter.add_(1);  // as an optimizer does
  expect(3);
  parameter.set_data(at::tensor({5.0f, 7.0f}));
  expect(4);
  parameter.set_data(parameter.to(at::kDouble));  // as a module's to() does
  expect(5);
  EXPECT_EQ(twice().scalar_type(), at::kDouble);
}

}  // namespace
}  // namespace lineal
