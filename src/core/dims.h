// Named sizes, checked at the entrance of every operation.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <string_view>

namespace lineal {

using at::Tensor;

/// The letters of docs/notation.md with their sizes. check(k, "BTHK", "k") learns the letters it has not met and fails
/// on those that differ: "delta_rule: k is [2, 4], expected [B=2, T=3, H, K]".
class Dims {
 public:
  explicit Dims(std::string who, std::map<char, int64_t> known = {}) : who_(std::move(who)), known_(std::move(known)) {}
  void check(const Tensor& tensor, std::string_view letters, std::string_view name);
  int64_t operator[](char letter) const { return known_.at(letter); }

 private:
  std::string who_;
  std::map<char, int64_t> known_;
};

}  // namespace lineal
