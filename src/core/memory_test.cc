#include "core/memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>

#include <new>

#include "core/error.h"
#include "core/shapes_only.h"

namespace lineal {
namespace {

/// What is_out_of_memory says of the exception that f throws.
template <class F>
bool runs_out(const F& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return is_out_of_memory(error);
  }
  ADD_FAILURE() << "nothing was thrown";
  return false;
}

TEST(Memory, KnowsAllocationsThatFailed) {
  EXPECT_TRUE(runs_out([] { at::empty({int64_t{1} << 50}); }));
  EXPECT_TRUE(runs_out([] { throw std::bad_alloc(); }));
  EXPECT_TRUE(runs_out([] { TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory"); }));
  EXPECT_FALSE(runs_out([] { at::empty({3}) + at::empty({5}); }));
  EXPECT_FALSE(runs_out([] { fail("cannot write x: cannot allocate memory"); }));
}

TEST(Memory, IsThatOfTheMachine) {
  EXPECT_GT(machine_memory(), int64_t{1} << 28);
  EXPECT_LT(machine_memory(), int64_t{1} << 50);
}

TEST(ShapesOnly, MakesModulesWithoutMemoryOrRandomNumbers) {
  at::manual_seed(5);
  const at::Tensor expected = at::randn({3});
  at::manual_seed(5);
  {
    const ShapesOnly shapes;
    const torch::nn::Linear huge(int64_t{1} << 24, int64_t{1} << 26);
    EXPECT_EQ(huge->weight.numel(), int64_t{1} << 50);
    EXPECT_TRUE(huge->weight.is_meta());
    EXPECT_TRUE(at::ones({3}).is_meta());
    EXPECT_TRUE(at::arange(7).is_meta());
  }
  EXPECT_TRUE(at::randn({3}).equal(expected));
  EXPECT_FALSE(at::zeros({3}).is_meta());
}

}  // namespace
}  // namespace lineal
