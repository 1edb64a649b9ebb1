// How far random features are from softmax attention.  (Rethinking Attention with Performers, 2021, section 4.2, fig.
// 4)
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "backbones/language_model.h"
#include "mixers/random_features.h"

namespace lineal {

/// softmax(q k^T) v by features, every query over all keys: phi(q) (phi(k)^T [v, 1]), divided by its last column.
/// q, k [T, K], v [T, V] -> [T, V].
Tensor approximate_attention(const FeatureMap& phi, const Tensor& projection, const Tensor& q, const Tensor& k,
                             const Tensor& v);

struct ApproximationSizes {
  int64_t T = 4096, K = 16;
  int64_t samples = 15;  // of q, k and v, the same for every row of the result
  int64_t draws = 1;     // of the projection for each of them
  /// Entries of q and k, of the kernel exp(q . k), are N(0, deviation^2) times K^{-1/4}; then q moves by `offset` along
  /// (1, ..., 1) / K^{1/2} and k against it, which divides the kernel by about exp(offset^2). v is N(0, 1).
  double deviation = 1, offset = 0;
  int64_t seed = 0;
};

struct Approximation {
  std::string feature_map, projection;
  int64_t M;
  /// For each sample, the mean over its draws of |o - softmax|^2 / |softmax|^2.
  std::vector<double> squared_errors;
};

/// For each M, each map of the softmax kernel and each way of drawing rows; in float64. Throws Error for an unknown
/// one.
std::vector<Approximation> measure_approximation(const ApproximationSizes& sizes, const std::vector<int64_t>& M,
                                                 const std::vector<std::string>& feature_maps,
                                                 const std::vector<std::string>& projections);

/// Of one block: |b - a| / |a| of what it returns in two models that read the same tokens; `alone` when the second
/// model's block is given what enters the first's.
struct BlockError {
  double alone, propagated;
};

/// Of each block in turn. tokens int64 [B, T], of the documents that `segments` tells. Throws Error for models that
/// differ in vocabulary, width or layers.
std::vector<BlockError> propagate_error(LanguageModel& a, LanguageModel& b, const Tensor& tokens,
                                        const Segments& segments = {});

}  // namespace lineal
