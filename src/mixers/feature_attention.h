// Attention through random features as functions of tensors; formulas in performer.cc and random_features.cc.
#pragma once

#include "kernels/kernels.h"

namespace lineal {

/// S_t^T phi(q_t), S_t the sum over t's document up to t, chunk_size tokens at once.
kernels::FeatureAttentionOutput feature_attention_reference(const kernels::FeatureAttentionInput& in,
                                                            int64_t chunk_size);

/// `kernels::feature_attention` beside the reference.
kernels::FeatureAttentionOutput feature_attention(const kernels::FeatureAttentionInput& in, int64_t chunk_size);

/// The same with S the sum over all of t's document that is in the call, and what the state has read.
kernels::FeatureAttentionOutput feature_attention_in_documents_reference(const kernels::FeatureAttentionInput& in);
kernels::FeatureAttentionOutput feature_attention_in_documents(const kernels::FeatureAttentionInput& in);

}  // namespace lineal
