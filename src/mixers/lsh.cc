// LSH attention: softmax over keys that fall into a query's bucket.              (Reformer, 2020, section 2)
//   bucket   argmax [x R_r, -x R_r] for each round r's random rotation R_r [K, n/2], n = T / bucket_size
//   sort     all rounds' tokens by (round, bucket, place) into one list, cut into chunks of bucket_size
//   score    K^{-1/2} q . k/|k| with the tokens of the own chunk and of the one before it, the last one for the first;
//            kSelfScore with itself, none with later tokens (causal) or other buckets (unless attend_across_buckets)
//   output   o_r = softmax(scores) v and l_r = logsumexp(scores) of each round;  o = sum_r softmax_r(l_r) o_r
// Without duplicates each score loses ln(c + 1e-9), c the rounds whose chunks put both tokens together.
#include "mixers/lsh.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "core/dims.h"
#include "core/error.h"

namespace lineal {
namespace {

/// Each chunk with the one before it: x [B, n, c, ...] -> [B, n, 2c, ...].
Tensor with_previous(const Tensor& x) { return at::cat({x, x.roll(1, 1)}, 2); }

/// x [B, P, ...], index int64 [B, Q] -> [B, Q, ...].
Tensor pick(const Tensor& x, const Tensor& index) {
  return at::index(x, {at::arange(x.size(0), index.options()).unsqueeze(1), index});
}

}  // namespace

Tensor lsh_buckets(const Tensor& x, const Tensor& rotations) {
  const Tensor h = at::einsum("...k,krn->...rn", {x, rotations});
  return at::cat({h, -h}, -1).argmax(-1);
}

Tensor lsh_attention(const Tensor& qk, const Tensor& v, const Tensor& rotations, const LshOptions& options) {
  Dims dims("lsh_attention");
  dims.check(qk, "BTK", "qk");
  dims.check(v, "BTV", "v");
  const int64_t T = dims['T'], R = rotations.size(1), size = options.bucket_size;
  if (T % (2 * size) != 0) fail("lsh_attention: ", T, " tokens, expected a multiple of 2 bucket_size ", 2 * size);
  const int64_t n = T / size;  // buckets of a round
  if (rotations.size(2) * 2 != n) {
    fail("lsh_attention: rotations are ", rotations.sizes(), ", expected [K, R, ", n / 2, "] for ", n, " buckets");
  }
  const auto whole = at::TensorOptions(qk.device()).dtype(at::kLong);
  const double lowest =
      qk.scalar_type() == at::kDouble ? -std::numeric_limits<double>::max() : -std::numeric_limits<float>::max();
  const Tensor round = at::arange(R, whole).unsqueeze(1);                                     // [R, 1]
  const Tensor bucket = (lsh_buckets(qk, rotations).transpose(1, 2) + n * round).flatten(1);  // [B, R T]
  const Tensor order = at::argsort(T * bucket + at::arange(T, whole).repeat({R}), /*stable=*/true, 1);
  const Tensor back = at::argsort(order, /*stable=*/true, 1);
  const Tensor token = order.remainder(T);  // [B, R T]
  const auto chunks = [&](const Tensor& x) { return x.unflatten(1, {R * n, size}); };

  const Tensor q = chunks(pick(qk, token)), place = chunks(token), own = chunks(pick(bucket, order));
  const Tensor k = with_previous(q / q.norm(2, {3}, /*keepdim=*/true).clamp_min(1e-12));
  const Tensor k_place = with_previous(place).unsqueeze(2), q_place = place.unsqueeze(3);
  Tensor scores =
      at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(dims['K']));  // [B, R n, size, 2 size]
  if (options.causal) scores = scores.masked_fill(q_place < k_place, lowest);
  scores = scores.masked_fill(q_place == k_place, kSelfScore);
  if (!options.attend_across_buckets) {
    scores = scores.masked_fill(own.unsqueeze(3) != with_previous(own).unsqueeze(2), lowest);
  }
  if (!options.allow_duplicate_attention) {
    const Tensor chunk = at::floor_divide(back, size);  // [B, R T], of each round's entry of each token
    const auto slots = [&](const Tensor& chunk_of) {
      const Tensor slot = options.attend_across_buckets ? chunk_of : bucket * (R * n) + chunk_of;
      return chunks(pick(slot.unflatten(1, {R, T}).transpose(1, 2), token));  // [B, R n, size, R]
    };
    const Tensor seen = with_previous(slots(chunk)).unsqueeze(2);  // [B, R n, 1, 2 size, R]
    const Tensor next = with_previous(slots((chunk + 1).remainder(R * n))).unsqueeze(2);
    const Tensor here = slots(chunk).unsqueeze(3);  // [B, R n, size, 1, R]
    const Tensor count = (here == seen).sum(-1) + (here == next).sum(-1);
    scores = scores - (count.to(scores.scalar_type()) + 1e-9).log();
  }
  const Tensor l = scores.logsumexp({-1}, /*keepdim=*/true);  // [B, R n, size, 1]
  const Tensor o = at::matmul((scores - l).exp(), with_previous(chunks(pick(v, token))));
  const auto rounds = [&](const Tensor& x) { return pick(x.flatten(1, 2), back).unflatten(1, {R, T}); };
  return (rounds(o) * rounds(l).softmax(1)).sum(1);
}

}  // namespace lineal
