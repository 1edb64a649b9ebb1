// The main of every test program: a fixed seed before each test, and fresh memory filled with NaN, so that a result
// that depends on what a tensor held before it was written fails.
#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

/// Bytes 0xff are NaN in every floating type, -1 in integers.
class PoisonedAllocator : public c10::Allocator {
 public:
  explicit PoisonedAllocator(c10::Allocator* allocator) : allocator_(allocator) {}

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr memory = allocator_->allocate(bytes);
    if (bytes > 0) std::memset(memory.get(), 0xff, bytes);
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override { return allocator_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { allocator_->copy_data(to, from, bytes); }

 private:
  c10::Allocator* allocator_;
};

/// Every test starts from the same seed, whichever ran before it.
class Seeder : public testing::EmptyTestEventListener {
 public:
  explicit Seeder(uint64_t seed) : seed_(seed) {}
  void OnTestStart(const testing::TestInfo&) override { at::manual_seed(seed_); }

 private:
  uint64_t seed_;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* chosen = std::getenv("LINEAL_TEST_SEED");
  const uint64_t seed = chosen ? std::strtoull(chosen, nullptr, 10) : 20240705;
  std::printf("seed %llu (LINEAL_TEST_SEED)\n", static_cast<unsigned long long>(seed));
  // At tests' sizes threads gain nothing, and on a busy machine their barriers cost a factor of thirty. A test of
  // threads sets their number itself.
  if (!std::getenv("OMP_NUM_THREADS")) at::set_num_threads(1);
  static PoisonedAllocator poisoned(c10::GetCPUAllocator());
  c10::SetCPUAllocator(&poisoned, /*priority=*/100);
  testing::UnitTest::GetInstance()->listeners().Append(new Seeder(seed));
  return RUN_ALL_TESTS();
}
