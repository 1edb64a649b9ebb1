// A store whose token ids are their own places, 0, 1, 2 ..., so that a test sees where every token comes from.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "data/split.h"
#include "data/token_store.h"

namespace lineal {

inline std::shared_ptr<const TokenStore> counting_store(const std::vector<int64_t>& sizes) {
  const Tensor ends = at::tensor(sizes, at::kLong).cumsum(0);
  const int64_t tokens = sizes.empty() ? 0 : ends[-1].item<int64_t>();
  const auto documents = static_cast<int64_t>(sizes.size());
  return std::make_shared<TokenStore>(at::arange(tokens, at::kInt), ends, at::arange(documents, at::kLong) * 7919);
}

/// The whole store as one part.
inline Part whole(const std::shared_ptr<const TokenStore>& store) {
  Part part{store, {}};
  for (int64_t i = 0; i < store->documents(); ++i) part.documents.push_back(store->document(i));
  return part;
}

}  // namespace lineal
