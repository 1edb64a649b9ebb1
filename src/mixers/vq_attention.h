// Attention over quantised keys as functions of tensors; formulas in vq_attention.cc.
#pragma once

#include "kernels/vq_attention.h"

namespace lineal {

/// `kernels::nearest_code` beside its definition.
Tensor nearest_code(const Tensor& k, const Tensor& codebook);

/// The codewords of codes: codebook [H, M, K], code int64 [B, T, H] -> [B, T, H, K].
Tensor codewords(const Tensor& codebook, const Tensor& code);

/// `kernels::vq_attention` beside its definition, which takes any float type.
kernels::VqOutput vq_attention(const kernels::VqInput& in);

}  // namespace lineal
