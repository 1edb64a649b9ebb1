#include "kernels/unfilled.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

namespace lineal::kernels {
namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kLarge = 2 * kPage;
constexpr uint64_t kPatience = 1000;  // large results: more than a training step of a deep model has

/// Blocks of whole large pages that no result has now, in a list that lies in them. With those that results have they
/// are never more than results had at once.
class Waiting {
 public:
  /// One of so many bytes, or null without memory.
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    ++results_;
    in_use_ += bytes;
    most_ = std::max(most_, in_use_);
    size_t room = most_ - in_use_;
    void* taken = nullptr;
    for (Block** at = &last_; *at;) {
      Block* const block = *at;
      if (!taken && block->bytes == bytes) {
        taken = block;
      } else if (block->bytes <= room && results_ - block->since <= kPatience) {
        room -= block->bytes;
        at = &block->before;
        continue;
      }
      *at = block->before;
      if (block != taken) std::free(block);
    }
    if (!taken) taken = allocate(bytes);
    if (!taken) in_use_ -= bytes;
    return taken;
  }
  void give(void* data, size_t bytes) {
    const std::lock_guard lock(mutex_);
    in_use_ -= bytes;
    last_ = new (data) Block{last_, bytes, results_};
  }

 private:
  struct Block {
    Block* before;
    size_t bytes;
    uint64_t since;  // of the results before it came
  };

  void* allocate(size_t bytes) {
    void* data = std::aligned_alloc(kPage, bytes);
    if (!data) {
      while (last_) std::free(std::exchange(last_, last_->before));
      data = std::aligned_alloc(kPage, bytes);
    }
#ifdef __linux__
    if (data) madvise(data, bytes, MADV_HUGEPAGE);  // a hint: refused, pages are as they were
#endif
    return data;
  }

  std::mutex mutex_;
  Block* last_ = nullptr;  // the one that came last
  uint64_t results_ = 0;
  size_t in_use_ = 0, most_ = 0;
};

Waiting& waiting() {
  static Waiting& never_destroyed = *new Waiting;  // results may outlive it
  return never_destroyed;
}

}  // namespace

at::Tensor unfilled(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (bytes < kLarge) return at::empty(sizes, options);
  const size_t whole = (bytes + kPage - 1) / kPage * kPage;
  void* data = waiting().take(whole);
  if (!data) return at::empty(sizes, options);  // with the error that a lack of memory has everywhere
  return at::from_blob(
      data, sizes, [whole](void* p) { waiting().give(p, whole); }, options);
}

}  // namespace lineal::kernels
