// The state is a value: named tensors that can be copied, forked, moved between batches, saved and loaded.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace lineal {

using at::Tensor;

/// x itself, or a copy when x is a view of part of a larger storage: a state that kept one would keep a whole call's
/// tensor alive.
Tensor own_storage(const Tensor& x);

/// What a mixer, block or model remembers of what it has read: named parts and named children, each part with the batch
/// first, [B, ...]. Parts are float32 (float64 in float64 models); counts such as `position` are int64. A part that
/// grows with the tokens read (the KV cache) grows along dimension 1 and is right-aligned: its newest entry is its
/// last.
class State {
 public:
  /// The part of that name; created undefined on first use by the non-const form.
  Tensor& operator[](const std::string& name);
  const Tensor& at(const std::string& name) const;
  bool has(const std::string& name) const;
  bool has_child(const std::string& name) const;
  State& child(const std::string& name);
  const State& child(const std::string& name) const;

  /// Every part with its full name, "layers.0.mixer.W1", children after parts, in order of creation.
  std::vector<std::pair<std::string, Tensor>> named() const;
  static State from_named(const std::vector<std::pair<std::string, Tensor>>& parts);

  /// The same structure with every part replaced by f(part).
  State map(const std::function<Tensor(const Tensor&)>& f) const;
  State clone() const;
  State detach() const;

  /// Sequences it holds.
  int64_t batch() const;
  /// The first part, or null without any.
  const Tensor* first_part() const;
  /// Bytes of all parts, counts included.
  int64_t bytes() const;

  /// Rows by index, int64 [R], repeats allowed.
  State rows(const Tensor& index) const;
  /// Every row n times in turn: [B, ...] -> [B * n, ...].
  State fork(int64_t n) const;
  /// The rows of all states under one another; growing parts are padded with zeros on the left to the longest.
  static State cat(const std::vector<State>& states);
  /// Writes `source`'s rows over the rows `index`, int64 [R], in place: what shares memory with the parts changes too.
  /// A part that has to grow for it is replaced.
  void set_rows(const Tensor& index, const State& source);

 private:
  std::vector<std::pair<std::string, Tensor>> parts_;
  std::vector<std::pair<std::string, State>> children_;
};

}  // namespace lineal
