#include "core/memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/nn/modules/linear.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <new>

#include "core/error.h"
#include "core/file.h"
#include "core/shapes_only.h"
#include "testing/temporary_folder.h"

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

/// Whether f, in a process of its own, returns true.
template <class F>
bool holds_in_a_child(const F& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool holds = false;
    try {
      holds = f();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    ::_exit(holds ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

rlim_t data_limit() {
  rlimit limit;
  return ::getrlimit(RLIMIT_DATA, &limit) == 0 ? limit.rlim_cur : 0;
}

TEST(Memory, IsLimitedToWhatIsFree) {
  EXPECT_TRUE(holds_in_a_child([] {
    const int64_t free = limit_memory();
    if (free <= 0 || free >= machine_memory()) return false;
    at::empty({1 << 20}, at::kByte);
    return runs_out([&] { at::empty({free + (int64_t{1} << 28)}, at::kByte); });
  }));
}

TEST(Memory, ANarrowerLimitStays) {
  EXPECT_TRUE(holds_in_a_child([] {
    const rlimit narrow{rlim_t{1} << 28, RLIM_INFINITY};
    if (::setrlimit(RLIMIT_DATA, &narrow) != 0) return false;
    limit_memory();
    widen_memory_limit(1 << 20);
    return data_limit() == narrow.rlim_cur;
  }));
}

TEST(Memory, MapsOfFilesAreNotLimited) {
  const TemporaryFolder folder;
  std::ofstream(folder / "large");
  std::filesystem::resize_file(folder / "large", static_cast<uintmax_t>(machine_memory()));
  EXPECT_TRUE(holds_in_a_child([&] {
    limit_memory();
    const rlim_t before = data_limit();
    { const MappedFile map(folder / "large"); }
    return before != RLIM_INFINITY && data_limit() == before;
  }));
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
