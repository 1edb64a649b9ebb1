#include "bench/approximation.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"

namespace lineal {
namespace {

double squared_error(const Tensor& estimate, const Tensor& exact) {
  return ((estimate - exact).square().sum() / exact.square().sum()).item<double>();
}

}  // namespace

Tensor approximate_attention(const FeatureMap& phi, const Tensor& projection, const Tensor& q, const Tensor& k,
                             const Tensor& v) {
  const auto queries = FeatureMap::project(q, projection), keys = FeatureMap::project(k, projection);
  const Tensor phi_q = phi(queries, phi.peak(queries)), phi_k = phi(keys, phi.peak(keys).amax());
  const Tensor S = at::matmul(phi_k.t(), at::cat({v, at::ones_like(v.slice(1, 0, 1))}, 1));  // [features, V + 1]
  const Tensor sums = at::matmul(phi_q, S);
  return sums.slice(1, 0, -1) / sums.slice(1, -1);
}

std::vector<Approximation> measure_approximation(const ApproximationSizes& sizes, const std::vector<int64_t>& M,
                                                 const std::vector<std::string>& feature_maps,
                                                 const std::vector<std::string>& projections) {
  const at::NoGradGuard no_grad;
  const auto options = at::TensorOptions().dtype(at::kDouble);
  std::vector<Approximation> rows;
  for (const int64_t m : M) {
    for (const auto& map : feature_maps) {
      if (!FeatureMap(map, 0).is_softmax()) {
        fail_unknown("approximation", "feature map of the softmax kernel", map, FeatureMap::softmax_kinds());
      }
      for (const auto& projection : projections) rows.push_back({map, projection, m, {}});
    }
  }
  const auto K = static_cast<double>(sizes.K);
  for (int64_t sample = 0; sample < sizes.samples; ++sample) {
    const auto seed = 2 * static_cast<uint64_t>(sizes.seed + sample);
    at::manual_seed(seed);
    const double deviation = sizes.deviation * std::pow(K, -0.25), apart = sizes.offset / std::sqrt(K);
    const Tensor q = deviation * at::randn({sizes.T, sizes.K}, options) + apart;
    const Tensor k = deviation * at::randn({sizes.T, sizes.K}, options) - apart;
    const Tensor v = at::randn({sizes.T, sizes.K}, options);
    const Tensor exact = at::matmul(at::softmax(at::matmul(q, k.t()), 1), v);
    for (Approximation& row : rows) {
      at::manual_seed(seed + 1);  // not q again; what compares is drawn alike
      double sum = 0;
      for (int64_t draw = 0; draw < sizes.draws; ++draw) {
        const Tensor w = draw_projection(row.M, sizes.K, drawing(row.projection), RowNorms::chi, options);
        sum += squared_error(approximate_attention(FeatureMap(row.feature_map, 0), w, q, k, v), exact);
      }
      row.squared_errors.push_back(sum / static_cast<double>(sizes.draws));
    }
  }
  return rows;
}

std::vector<BlockError> propagate_error(LanguageModel& a, LanguageModel& b, const Tensor& tokens,
                                        const Segments& segments) {
  const auto &of_a = a.config(), &of_b = b.config();
  if (of_a.vocab_size != of_b.vocab_size || of_a.hidden_size != of_b.hidden_size ||
      of_a.layers.size() != of_b.layers.size()) {
    fail("propagation: the second model has vocab_size ", of_b.vocab_size, ", hidden_size ", of_b.hidden_size, ", ",
         of_b.layers.size(), " layers, expected those of the first: ", of_a.vocab_size, ", ", of_a.hidden_size, ", ",
         of_a.layers.size());
  }
  const at::NoGradGuard no_grad;
  const int64_t B = tokens.size(0);
  State of_a_state = a.initial_state(B), of_b_state = b.initial_state(B);
  Tensor x = a.embed(tokens, of_a_state), y = b.embed(tokens, of_b_state);
  std::vector<BlockError> errors;
  for (size_t i = 0; i < a.blocks().size(); ++i) {
    const auto run = [&](Block& block, const Tensor& in) {
      State state = block.initial_state(B);
      return block.forward(in, state, segments);
    };
    const Tensor next = run(*a.blocks()[i], x), alone = run(*b.blocks()[i], x);
    y = run(*b.blocks()[i], y);
    x = next;
    errors.push_back({std::sqrt(squared_error(alone, x)), std::sqrt(squared_error(y, x))});
  }
  return errors;
}

}  // namespace lineal
