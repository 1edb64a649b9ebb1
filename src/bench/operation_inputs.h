// Random inputs of each fused operation.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "bench/operations.h"

namespace lineal {

using at::Tensor;

/// Leaves, and what is computed of them. Where the sizes have a pool each call steps other rows of it.
struct Prepared {
  std::vector<Tensor> leaves;
  std::function<Tensor()> o;
};

Prepared prepare_ttt_linear(const OperationSizes& n);
Prepared prepare_ttt_mlp(const OperationSizes& n);
Prepared prepare_linear_attention(const OperationSizes& n);
Prepared prepare_delta_rule(const OperationSizes& n);
Prepared prepare_feature_attention(const OperationSizes& n);
Prepared prepare_feature_attention_in_documents(const OperationSizes& n);
Prepared prepare_selective_scan(const OperationSizes& n);
Prepared prepare_wkv(const OperationSizes& n);
Prepared prepare_short_conv(const OperationSizes& n);
Prepared prepare_nearest_code(const OperationSizes& n);
/// The search for codes included, and the codewords that the search leaves.
Prepared prepare_vq_attention(const OperationSizes& n);
constexpr int64_t kVqBlock = 128;
Prepared prepare_rms_norm(const OperationSizes& n);
Prepared prepare_add_rms_norm(const OperationSizes& n);
Prepared prepare_rope(const OperationSizes& n);
Prepared prepare_swiglu(const OperationSizes& n);
Prepared prepare_token_loss(const OperationSizes& n);

}  // namespace lineal
