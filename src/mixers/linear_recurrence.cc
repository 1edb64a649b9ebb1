// The linear recurrences: a matrix that decays and takes updates of rank one.
//                        (Linear Transformers with the Delta Rule, 2024, eq. 8-11; Mamba-2, 2024, listing 1)
//   update   S_t = diag(exp(g_t)) S_{t-1} + k_t u_t^T                                              [K, V]
//            u_t = v_t, or with beta the delta rule's beta_t (v_t - (diag(exp(g_t)) S_{t-1})^T k_t)
//   output   o_t = S_t^T q_t
//   chunked  a chunk of C tokens that starts at S; D_ij = exp(g_{j+1} + ... + g_i), d_i = exp(g_1 + ... + g_i):
//            U = V, or (I + A) U = diag(beta) (V - (d K) S),  A_ij = beta_i sum_c k_ic D_ijc k_jc for j < i
//            O = (d Q) S + P U,  P_ij = sum_c q_ic D_ijc k_jc for j <= i
//            S' = d_C S + (D_C K)^T U
//   cost     O(T K (V + C)) time, K V state per head
#include "mixers/linear_recurrence.h"

#include <ATen/ATen.h>

#include "core/dims.h"
#include "mixers/chunks.h"

namespace lineal {

using kernels::RecurrenceInput;
using kernels::RecurrenceOutput;

namespace {

const char* name(const RecurrenceInput& in) { return in.beta.defined() ? "delta_rule" : "linear_attention"; }

Dims check(const RecurrenceInput& in) {
  Dims dims(name(in));
  dims.check(in.q, "BTHK", "q");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHV", "v");
  if (in.beta.defined()) dims.check(in.beta, "BTH", "beta");
  if (in.g.defined()) dims.check(in.g, in.g.dim() == 4 ? "BTHK" : "BTH", "g");
  dims.check(in.S, "BHKV", "S");
  return dims;
}

/// [B, T, H, 1] or [B, T, H, K].
Tensor per_channel(const Tensor& g) { return g.dim() == 4 ? g : g.unsqueeze(3); }

}  // namespace

RecurrenceOutput linear_recurrence_reference(const RecurrenceInput& in) {
  const Dims dims = check(in);
  const auto token = [&](const Tensor& x, int64_t t) { return x.select(1, t).to(in.S.scalar_type()).unsqueeze(2); };
  Tensor S = in.S;
  std::vector<Tensor> o;
  for (int64_t t = 0; t < dims['T']; ++t) {
    S = restart(S, {in.starts}, t);
    if (in.g.defined()) S = S * per_channel(in.g).select(1, t).unsqueeze(3).exp();
    const Tensor k = token(in.k, t);  // [B, H, 1, K]
    Tensor u = token(in.v, t);        // [B, H, 1, V]
    if (in.beta.defined()) u = token(in.beta, t).unsqueeze(3) * (u - at::matmul(k, S));
    S = S + k.transpose(2, 3) * u;
    o.push_back(at::matmul(token(in.q, t), S).squeeze(2));
  }
  return {at::stack(o, 1).to(in.v.scalar_type()), S};
}

RecurrenceOutput linear_recurrence_chunked(const RecurrenceInput& in, int64_t chunk_size) {
  const Dims dims = check(in);
  const Chunks chunks(in.S.new_empty({dims['B'], dims['T']}), chunk_size, {in.starts});
  const auto split = [&](const Tensor& x) { return chunks.split(x.to(in.S.scalar_type())); };
  const Tensor Q = split(in.q), K = split(in.k), V = split(in.v);  // [B, H, n, C, K|V]
  const Decays decays = in.g.defined() ? Decays(split(per_channel(in.g))) : Decays();
  const auto through = decays.through(chunks.count());
  const Tensor K_after = chunks.after(decayed(K, decays.after())).transpose(-1, -2);
  const auto pass = [&](const Tensor& S, size_t i) {
    return decayed(chunks.pass(S, static_cast<int64_t>(i)), through[i]);
  };

  Tensor S = in.S, U = V;
  std::vector<Tensor> at_start, found;
  if (in.beta.defined()) {
    const Tensor b = split(in.beta.unsqueeze(3));  // [B, H, n, C, 1]
    const Tensor A = chunks.inside(b * scores(K, K, decays.between), /*strict=*/true);
    // U = R - W S, both sides of (I + A) U solved for every chunk at once; the diagonal of ones is implied.
    const Tensor right = at::cat({b * V, chunks.before(b * decayed(K, decays.before))}, -1);
    const Tensor solved = at::linalg_solve_triangular(A, right, /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
    const auto R = solved.slice(-1, 0, dims['V']).unbind(2), W = solved.slice(-1, dims['V']).unbind(2);
    const auto added = K_after.unbind(2);
    for (size_t i = 0; i < R.size(); ++i) {
      at_start.push_back(S);
      found.push_back(R[i] - at::matmul(W[i], S));  // [B, H, C, V]
      S = pass(S, i) + at::matmul(added[i], found.back());
    }
    U = at::stack(found, 2);
  } else {
    const auto added = at::matmul(K_after, V).unbind(2);  // n times [B, H, K, V]
    for (size_t i = 0; i < added.size(); ++i) {
      at_start.push_back(S);
      S = pass(S, i) + added[i];
    }
  }
  const Tensor P = chunks.inside(scores(Q, K, decays.between));
  const Tensor o = at::matmul(chunks.before(decayed(Q, decays.before)), at::stack(at_start, 2)) + at::matmul(P, U);
  return {chunks.join(o).to(in.v.scalar_type()), S};
}

RecurrenceOutput linear_recurrence(const RecurrenceInput& in, int64_t chunk_size) {
  return kernels::use(
      in.beta.defined() ? kernels::delta_rule : kernels::linear_attention,
      [&](const RecurrenceInput& input) { return linear_recurrence_chunked(input, chunk_size); }, in);
}

}  // namespace lineal
