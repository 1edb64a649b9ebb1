// Attention through random features, as a linear recurrence of them. formulas: performer.cc, random_features.cc
#include "mixers/feature_attention.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/state.h"
#include "mixers/linear_recurrence.h"
#include "mixers/random_features.h"

namespace lineal {

using kernels::FeatureAttentionInput;
using kernels::FeatureAttentionOutput;

namespace {

/// bool [B, T]: the first token of each document.
Tensor beginnings(const FeatureAttentionInput& in) {
  Tensor first = in.starts.defined() ? in.starts.clone() : in.fresh.new_zeros({in.q.size(0), in.q.size(1)});
  first.select(1, 0).logical_or_(in.fresh);
  return first;
}

/// x [B, T, H] -> [B, 1 + T, H]: `before` [B, H], then the maxima of each token's document up to it; a document starts
/// where `fresh`, bool [B, T].
Tensor running_maximum(const Tensor& x, const Tensor& before, const Tensor& fresh) {
  const int64_t T = x.size(1);
  Tensor all = at::cat({before.unsqueeze(1), x}, 1);
  const Tensor document = at::constant_pad_nd(fresh.cumsum(1), {1, 0}).unsqueeze(2);  // [B, 1 + T, 1]
  for (int64_t reach = 1; reach <= T; reach *= 2) {
    const Tensor now = all.slice(1, reach), earlier = all.slice(1, 0, T + 1 - reach);
    const Tensor same = document.slice(1, reach) == document.slice(1, 0, T + 1 - reach);
    all = at::cat({all.slice(1, 0, reach), at::where(same, at::maximum(now, earlier), now)}, 1);
  }
  return all;
}

struct Projected {
  FeatureMap::Projected k;
  Tensor phi_q;  // [B, T, H, features]
};

Projected project(const FeatureAttentionInput& in, const FeatureMap& phi) {
  const auto queries = FeatureMap::project(in.q * in.scale, in.projection);
  return {FeatureMap::project(in.k * in.scale, in.projection),
          phi(queries, phi.is_softmax() ? phi.peak(queries) : Tensor())};
}

}  // namespace

FeatureAttentionOutput feature_attention_reference(const FeatureAttentionInput& in, int64_t chunk_size) {
  const FeatureMap phi(in.map, in.epsilon);
  const auto [keys, phi_q] = project(in, phi);
  kernels::RecurrenceInput recurrence{.q = phi_q, .v = in.v, .S = in.S, .starts = in.starts};
  Tensor peak;
  if (phi.is_softmax()) {
    const Tensor fresh = beginnings(in);
    const Tensor peaks = running_maximum(phi.peak(keys).squeeze(3), in.peak, fresh);  // [B, 1 + T, H]
    const Tensor now = peaks.slice(1, 1);
    recurrence.k = phi(keys, now.unsqueeze(3));
    recurrence.g = at::where(fresh.unsqueeze(2), 0, peaks.slice(1, 0, -1) - now);
    peak = own_storage(now.select(1, -1));
  } else {
    recurrence.k = phi(keys, Tensor());
  }
  const auto out = linear_recurrence(recurrence, chunk_size);
  return {out.o, out.S, peak};
}

FeatureAttentionOutput feature_attention(const FeatureAttentionInput& in, int64_t chunk_size) {
  return kernels::use(
      kernels::feature_attention,
      [&](const FeatureAttentionInput& input) { return feature_attention_reference(input, chunk_size); }, in);
}

FeatureAttentionOutput feature_attention_in_documents_reference(const FeatureAttentionInput& in) {
  const FeatureMap phi(in.map, in.epsilon);
  const auto [keys, phi_q] = project(in, phi);
  const Tensor fresh = beginnings(in);
  const Tensor& v = in.v;
  const Tensor document = fresh.cumsum(1);  // [B, T]; 0 is the one the state belongs to
  const int64_t count = document.max().item<int64_t>() + 1;
  const auto member = [&](int64_t d) { return (document == d).unsqueeze(2).unsqueeze(3); };  // [B, T, 1, 1]
  const auto is_last = [&](int64_t d) { return (document.select(1, -1) == d).view({-1, 1, 1, 1}); };

  const bool shifted = phi.is_softmax();
  const Tensor own = shifted ? phi.peak(keys) : at::zeros_like(v.slice(3, 0, 1));  // [B, T, H, 1]
  const Tensor before = shifted ? in.peak.unsqueeze(1).unsqueeze(3) : at::zeros_like(own.slice(1, 0, 1));

  std::vector<Tensor> peaks;           // of each document, [B, 1, H, 1]
  Tensor shift = at::zeros_like(own);  // of each token's document
  for (int64_t d = 0; d < count; ++d) {
    const Tensor peak = at::where(member(d), own, -INFINITY).amax({1}, /*keepdim=*/true);
    peaks.push_back(d == 0 ? at::maximum(peak, before) : peak);
    shift = at::where(member(d), peaks.back(), shift);
  }
  const Tensor phi_k = phi(keys, shift);
  Tensor o = at::zeros_like(v), S_last, peak_last;
  for (int64_t d = 0; d < count; ++d) {
    const Tensor& peak = peaks[static_cast<size_t>(d)];
    Tensor S = at::einsum("bthf,bthv->bhfv", {at::where(member(d), phi_k, 0), v});
    if (d == 0) S = S + (before - peak).exp().transpose(1, 2) * in.S;
    o = at::where(member(d), at::einsum("bthf,bhfv->bthv", {phi_q, S}), o);
    S_last = d == 0 ? S : at::where(is_last(d), S, S_last);
    peak_last = d == 0 ? peak : at::where(is_last(d), peak, peak_last);
  }
  return {o, S_last, shifted ? peak_last.squeeze(3).squeeze(1) : Tensor()};
}

FeatureAttentionOutput feature_attention_in_documents(const FeatureAttentionInput& in) {
  return kernels::use(kernels::feature_attention_in_documents, feature_attention_in_documents_reference, in);
}

}  // namespace lineal
