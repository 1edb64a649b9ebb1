// Which rows of a pool of states step together.
#pragma once

#include <ATen/core/Tensor.h>

namespace lineal {

using at::Tensor;

/// Rows of a State that holds more sequences than take part in a call: all different, in any order.
class Rows {
 public:
  /// Throws Error unless there is a row at least, each is in [0, capacity) and none comes twice. capacity: rows of the
  /// pool, its batch().
  Rows(at::IntArrayRef index, int64_t capacity);

  int64_t count() const { return index_.size(0); }
  int64_t capacity() const { return capacity_; }
  /// int64 [count()], on the CPU.
  const Tensor& index() const { return index_; }
  const int64_t* data() const { return index_.const_data_ptr<int64_t>(); }

 private:
  Tensor index_;
  int64_t capacity_;
};

}  // namespace lineal
