// The recurrence of linear attention as functions of tensors; formulas in linear_attention.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "core/segments.h"

namespace lineal {

using at::Tensor;

/// q, k [B, T, H, K], v [B, T, H, V], S [B, H, K, V] -> o [B, T, H, V] and the final S. The caller scales q. The
/// definition: one token after another.
std::pair<Tensor, Tensor> linear_attention_reference(const Tensor& q, const Tensor& k, const Tensor& v, Tensor S,
                                                     const Segments& segments = {});

/// The same numbers, chunk_size tokens at once, computed in the type of S; o has that of v.
std::pair<Tensor, Tensor> linear_attention_chunked(const Tensor& q, const Tensor& k, const Tensor& v, Tensor S,
                                                   int64_t chunk_size, const Segments& segments = {});

/// elu(x) + 1: positive features.   (Transformers are RNNs, 2020, eq. 7)
Tensor elu1(const Tensor& x);

}  // namespace lineal
