#include "core/rows.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"

namespace lineal {

Rows::Rows(at::IntArrayRef index, int64_t capacity) : index_(at::tensor(index, at::kLong)), capacity_(capacity) {
  if (index.empty()) fail("rows: none given, expected one of the pool's ", capacity, " at least");
  auto sorted = index.vec();
  std::sort(sorted.begin(), sorted.end());
  if (sorted.front() < 0 || sorted.back() >= capacity) {
    fail("rows: ", sorted.front() < 0 ? sorted.front() : sorted.back(), " is out of range, the pool has ", capacity);
  }
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) fail("rows: ", *twice, " comes twice, expected different rows");
}

}  // namespace lineal
