#include "kernels/unfilled.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace lineal::kernels {
namespace {

#ifdef __linux__

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kLarge = 2 * kPage;
constexpr uint64_t kPatience = 1000;  // large results: more than a training step of a deep model has

/// A multiple of kPage bytes, aligned to it, of which the first `used` will be written; null without memory.
void* map(size_t bytes, size_t used) {
  void* all = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  const size_t before = -reinterpret_cast<uintptr_t>(all) % kPage;
  char* begin = static_cast<char*>(all) + before;
  if (before > 0) munmap(all, before);
  munmap(begin + bytes, kPage - before);
  madvise(begin, used / kPage * kPage, MADV_HUGEPAGE);  // a hint: refused, pages are as they were
  return begin;
}

/// What no result has now, linked through the first bytes of each. With what results have it is never more than they
/// had at once.
class Waiting {
 public:
  /// kPage bytes and more, or null without memory.
  void* take(size_t bytes, size_t used) {
    Block *taken = nullptr, *unwanted = nullptr;
    {
      const std::lock_guard lock(mutex_);
      ++results_;
      in_use_ += bytes;
      size_t room = std::max(most_, in_use_) - in_use_;
      for (Block** at = &last_; *at;) {
        Block* const block = *at;
        if (!taken && block->bytes == bytes) {
          taken = std::exchange(*at, block->before);
        } else if (block->bytes <= room && results_ - block->since <= kPatience) {
          room -= block->bytes;
          at = &block->before;
        } else {
          *at = std::exchange(block->before, unwanted);
          unwanted = block;
        }
      }
    }
    unmap(unwanted);
    void* data = taken ? taken : map(bytes, used);
    if (!data) {
      unmap(all());
      data = map(bytes, used);
    }
    const std::lock_guard lock(mutex_);
    if (!data) in_use_ -= bytes;
    most_ = std::max(most_, in_use_);
    return data;
  }
  void give(void* data, size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    in_use_ -= bytes;
    last_ = new (data) Block{last_, bytes, results_};
  }

  void empty() {
    unmap(all());
    const std::lock_guard lock(mutex_);
    most_ = in_use_;
  }

  static Waiting& here() {
    static Waiting& never_destroyed = *[] {  // results may outlive it
      pthread_atfork([] { here().mutex_.lock(); }, [] { here().mutex_.unlock(); }, [] { here().mutex_.unlock(); });
      return new Waiting;
    }();
    return never_destroyed;
  }

 private:
  struct Block {
    Block* before;
    size_t bytes;
    uint64_t since;  // results_ when it came
  };

  Block* all() {
    const std::lock_guard lock(mutex_);
    return std::exchange(last_, nullptr);
  }
  static void unmap(Block* block) {
    while (block) {
      Block* const next = block->before;
      munmap(block, block->bytes);
      block = next;
    }
  }

  std::mutex mutex_;
  Block* last_ = nullptr;
  uint64_t results_ = 0;
  size_t in_use_ = 0, most_ = 0;
};

/// Who has set another allocator wants to see all memory, as the tests do, which fill it with NaN.
bool is_usual(const at::TensorOptions& options) {
  return options.device().is_cpu() && c10::GetCPUAllocator() == c10::GetDefaultCPUAllocator();
}

#endif

}  // namespace

at::Tensor unfilled(at::IntArrayRef sizes, const at::TensorOptions& options) {
#ifdef __linux__
  const size_t used = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (used >= kLarge && is_usual(options)) {
    const size_t bytes = (used + kPage - 1) / kPage * kPage;
    if (void* data = Waiting::here().take(bytes, used)) {
      return at::for_blob(data, sizes)
          .deleter([bytes](void* p) { Waiting::here().give(p, bytes); })
          .options(options)
          .allocator(c10::GetCPUAllocator())  // where it goes when it is resized
          .resizeable_storage()
          .make_tensor();
    }
  }
#endif
  return at::empty(sizes, options);
}

void empty_cache() {
#ifdef __linux__
  Waiting::here().empty();
#endif
}

}  // namespace lineal::kernels
