#include "core/state.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace lineal {
namespace {

template <class Pairs>
auto lookup(Pairs& pairs, const std::string& name) {
  return std::find_if(pairs.begin(), pairs.end(), [&](const auto& pair) { return pair.first == name; });
}

/// Pads dimension 1 with zeros on the left up to `length`.
Tensor right_align(const Tensor& part, int64_t length) {
  if (part.dim() < 2 || part.size(1) == length) return part;
  auto sizes = part.sizes().vec();
  sizes[1] = length - sizes[1];
  return at::cat({at::zeros(sizes, part.options()), part}, 1);
}

}  // namespace

Tensor own_storage(const Tensor& x) { return x.storage().nbytes() == x.nbytes() ? x : x.clone(); }

Tensor& State::operator[](const std::string& name) {
  const auto found = lookup(parts_, name);
  return found != parts_.end() ? found->second : parts_.emplace_back(name, Tensor()).second;
}

const Tensor& State::at(const std::string& name) const {
  const auto found = lookup(parts_, name);
  if (found == parts_.end()) fail("state: no part '", name, "'; it has ", parts_.size(), " parts");
  return found->second;
}

bool State::has(const std::string& name) const { return lookup(parts_, name) != parts_.end(); }

bool State::has_child(const std::string& name) const { return lookup(children_, name) != children_.end(); }

State& State::child(const std::string& name) {
  const auto found = lookup(children_, name);
  return found != children_.end() ? found->second : children_.emplace_back(name, State()).second;
}

const State& State::child(const std::string& name) const {
  const auto found = lookup(children_, name);
  if (found == children_.end()) fail("state: no child '", name, "'; it has ", children_.size(), " children");
  return found->second;
}

std::vector<std::pair<std::string, Tensor>> State::named() const {
  auto result = parts_;
  for (const auto& [name, child] : children_) {
    for (auto& [part, tensor] : child.named()) result.emplace_back(name + "." + part, tensor);
  }
  return result;
}

State State::from_named(const std::vector<std::pair<std::string, Tensor>>& parts) {
  State state;
  for (const auto& [name, tensor] : parts) {
    State* at = &state;
    size_t from = 0;
    for (size_t dot; (dot = name.find('.', from)) != std::string::npos; from = dot + 1) {
      at = &at->child(name.substr(from, dot - from));
    }
    (*at)[name.substr(from)] = tensor;
  }
  return state;
}

State State::map(const std::function<Tensor(const Tensor&)>& f) const {
  State result;
  for (const auto& [name, tensor] : parts_) result.parts_.emplace_back(name, f(tensor));
  for (const auto& [name, child] : children_) result.children_.emplace_back(name, child.map(f));
  return result;
}

State State::clone() const {
  return map([](const Tensor& part) { return part.clone(); });
}

State State::detach() const {
  return map([](const Tensor& part) { return part.detach(); });
}

int64_t State::batch() const {
  if (const Tensor* part = first_part()) return part->size(0);
  fail("state: it has no parts, so no batch size");
}

const Tensor* State::first_part() const {
  if (!parts_.empty()) return &parts_.front().second;
  for (const auto& [name, child] : children_) {
    if (const Tensor* part = child.first_part()) return part;
  }
  return nullptr;
}

int64_t State::bytes() const {
  int64_t total = 0;
  for (const auto& [name, part] : named()) total += static_cast<int64_t>(part.nbytes());
  return total;
}

State State::rows(const Tensor& index) const {
  return map([&](const Tensor& part) { return part.index_select(0, index.to(part.device())); });
}

State State::fork(int64_t n) const {
  return map([&](const Tensor& part) { return part.repeat_interleave(n, 0); });
}

State State::cat(const std::vector<State>& states) {
  if (states.empty()) fail("state: cat of no states");
  State result;
  for (const auto& [name, first] : states.front().parts_) {
    int64_t longest = 0;
    for (const State& state : states) {
      if (state.at(name).dim() > 1) longest = std::max(longest, state.at(name).size(1));
    }
    std::vector<Tensor> parts;
    for (const State& state : states) parts.push_back(right_align(state.at(name), longest));
    result[name] = at::cat(parts, 0);
  }
  for (const auto& [name, first] : states.front().children_) {
    std::vector<State> parts;
    for (const State& state : states) parts.push_back(state.child(name));
    result.child(name) = cat(parts);
  }
  return result;
}

void State::set_rows(const Tensor& index, const State& source) {
  for (auto& [name, part] : parts_) {
    const Tensor& from = source.at(name);
    const int64_t longest = part.dim() > 1 ? std::max(part.size(1), from.size(1)) : 0;
    part = right_align(part, longest);
    part.index_copy_(0, index.to(part.device(), at::kLong), right_align(from, longest));
  }
  for (auto& [name, child] : children_) child.set_rows(index, source.child(name));
}

}  // namespace lineal
