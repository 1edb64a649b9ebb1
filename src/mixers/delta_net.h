// The delta rule as functions of tensors; formulas in delta_net.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "core/segments.h"

namespace lineal {

using at::Tensor;

/// q, k [B, T, H, K], v [B, T, H, V], beta [B, T, H], S [B, H, K, V] -> o [B, T, H, V] and the final S. The caller
/// scales q and normalises k. The definition: one token after another.
std::pair<Tensor, Tensor> delta_rule_reference(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                               Tensor S, const Segments& segments = {});

/// The same numbers, chunk_size tokens at once, computed in the type of S; o has that of v.
std::pair<Tensor, Tensor> delta_rule_chunked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                             Tensor S, int64_t chunk_size, const Segments& segments = {});

}  // namespace lineal
