// Work space of one thread in a kernel, kept between calls.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace lineal::kernels::cpu {

/// Rows of tiles are a multiple of this many floats, the widest vector.
constexpr int64_t kAlign = 16;
constexpr int64_t padded(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

/// Hands out zeroed arrays of floats, aligned to cache lines, until it is destroyed. One at a time in each thread.
class Scratch {
 public:
  ~Scratch() { used() = 0; }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* take(int64_t n) {
    auto& arrays = kept();
    const size_t i = used()++;
    if (i == arrays.size()) arrays.emplace_back();
    Array& array = arrays[i];
    if (array.size < n) array = Array(padded(n));
    std::fill_n(array.data.get(), n, 0.0f);
    return array.data.get();
  }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  struct Array {
    std::unique_ptr<float, Free> data;
    int64_t size = 0;

    Array() = default;
    explicit Array(int64_t n)
        : data(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(n) * sizeof(float)))), size(n) {
      if (!data) throw std::bad_alloc();
    }
  };
  static std::vector<Array>& kept() {
    thread_local std::vector<Array> arrays;
    return arrays;
  }
  static size_t& used() {
    thread_local size_t count = 0;
    return count;
  }
};

}  // namespace lineal::kernels::cpu
