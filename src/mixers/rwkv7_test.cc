#include "mixers/rwkv7.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear_recurrence.h"
#include "testing/plain_layer.h"

namespace lineal {
namespace {

/// chunk_size 0: the recurrence.
kernels::RecurrenceOutput run(const RankOneInput& in, int64_t chunk_size) {
  return chunk_size == 0 ? rank_one_reference(in) : rank_one_chunked(in, chunk_size);
}

TEST(RWKV7, Golden) {
  const Golden golden("linear_family/dplr_rwkv7");
  const std::vector<std::string> names = {"q", "k", "v", "alpha", "beta", "gk"};
  for (const int64_t C : {0, 7, 32}) {
    std::vector<Tensor> leaves;
    for (const auto& name : names) leaves.push_back(golden[name].clone().requires_grad_());
    RankOneInput in{.q = leaves[0] / std::sqrt(16.0),
                    .k = leaves[1],
                    .a = leaves[3],
                    .b = leaves[4],
                    .v = leaves[2],
                    .g = leaves[5],
                    .S = at::zeros({1, 2, 16, 16})};
    const auto out = run(in, C);
    EXPECT_CLOSE(out.o, golden["o"], 1e-5);
    EXPECT_CLOSE(out.S, golden["final_state"], 1e-5);
    const auto gradients = torch::autograd::grad({(out.o * golden["probe"]).sum()}, leaves);
    for (size_t i = 0; i < names.size(); ++i) EXPECT_CLOSE(gradients[i], golden["grad." + names[i]], 1e-4) << names[i];
    in.S = golden["init_state"];
    const auto from = run(in, C);
    EXPECT_CLOSE(from.o, golden["o_init"], 1e-5);
    EXPECT_CLOSE(from.S, golden["final_state_init"], 1e-5);
  }
}

RankOneInput input() {
  const int64_t B = 3, T = 29, H = 2, K = 5, V = 7;
  const Tensor kappa = normal({B, T, H, K}, 3, at::kDouble), unit = kappa / kappa.norm(2, {-1}, true);
  return {.q = normal({B, T, H, K}, 1, at::kDouble),
          .k = normal({B, T, H, K}, 2, at::kDouble),
          .a = -unit,
          .b = unit * normal({B, T, H, K}, 4, at::kDouble).sigmoid(),
          .v = normal({B, T, H, V}, 5, at::kDouble),
          .g = -0.3 * normal({B, T, H, K}, 6, at::kDouble).square(),
          .S = normal({B, H, K, V}, 7, at::kDouble)};
}

TEST(RWKV7, ChunkedIsTheRecurrence) {
  Tensor starts = at::zeros({3, 29}, at::kBool);
  for (const auto& [row, token] : std::vector<std::pair<int, int>>{{0, 0}, {1, 9}, {1, 11}, {2, 28}}) {
    starts[row][token] = true;
  }
  for (const auto& documents : {Tensor(), starts}) {
    const auto outcome = [&](int64_t C) {
      RankOneInput in = input();
      in.starts = documents;
      std::vector<Tensor> leaves;
      for (Tensor* x : {&in.q, &in.k, &in.a, &in.b, &in.v, &in.g, &in.S}) leaves.push_back(x->requires_grad_());
      const auto out = run(in, C);
      auto result = torch::autograd::grad({out.o.square().sum() + out.S.pow(3).sum()}, leaves);
      result.insert(result.end(), {out.o, out.S});
      return result;
    };
    const auto expected = outcome(0);
    for (const int64_t C : {1, 4, 29, 64}) {
      const auto actual = outcome(C);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_CLOSE(actual[i], expected[i], 1e-11) << i << ", chunk " << C;
    }
  }
}

/// Removing along the key, of the decayed state, and writing beta v makes it the gated delta rule.
TEST(RWKV7, ContainsTheGatedDeltaRule) {
  RankOneInput in = input();
  const Tensor key = -in.a, beta = normal({3, 29, 2}, 8, at::kDouble).sigmoid();
  const auto expected =
      linear_recurrence_reference({.q = in.q, .k = key, .v = in.v, .beta = beta, .g = in.g, .S = in.S});
  in.k = key;
  in.a = -key * in.g.exp();
  in.b = beta.unsqueeze(3) * key;
  in.v = beta.unsqueeze(3) * in.v;
  EXPECT_CLOSE(rank_one_chunked(in, 8).o, expected.o, 1e-12);
}

/// The layer as rwkv7.cc's head has it, one token after another.
Tensor plain_layer(const NamedWeights& p, const Tensor& x, int64_t H) {
  const int64_t B = x.size(0), T = x.size(1), D = x.size(2), K = D / H;
  const Tensor before = at::cat({at::zeros({B, 1, D}, x.options()), x.slice(1, 0, T - 1)}, 1);
  const auto mix = [&](const char* name) { return x + p[name] * (before - x); };
  const auto heads = [&](const Tensor& y) { return y.reshape({B, T, H, K}); };
  const auto per_head = [&](const char* name) { return p[name].reshape({H, K}); };
  const auto sigmoid = [](const Tensor& y) { return 1 / (1 + y.neg().exp()); };
  const Tensor r = heads(at::linear(mix("x_r"), p["receptance.weight"]));
  const Tensor k = heads(at::linear(mix("x_k"), p["key.weight"])), v = heads(at::linear(mix("x_v"), p["value.weight"]));
  const Tensor w = p["w0"] + at::matmul(at::matmul(mix("x_w"), p["w1"]).tanh(), p["w2"]);
  const Tensor decay = heads((-std::exp(-0.5) * sigmoid(w)).exp());
  const Tensor eta = heads(sigmoid(p["a0"] + at::matmul(at::matmul(mix("x_a"), p["a1"]), p["a2"])));
  const Tensor gate = at::matmul(sigmoid(at::matmul(mix("x_g"), p["g1"])), p["g2"]);
  const Tensor kappa = k * per_head("k_k") / (k * per_head("k_k")).norm(2, {-1}, true);
  const Tensor written = k * (1 + (eta - 1) * per_head("k_a"));
  Tensor S = at::zeros({B, H, K, K}, x.options()), o = at::zeros({B, T, H, K}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    const Tensor found = at::einsum("bhkv,bhk->bhv", {S, kappa.select(1, t)});
    S = decay.select(1, t).unsqueeze(3) * S - at::einsum("bhk,bhv->bhkv", {(eta * kappa).select(1, t), found}) +
        at::einsum("bhk,bhv->bhkv", {written.select(1, t), v.select(1, t)});
    o.select(1, t).copy_(at::einsum("bhkv,bhk->bhv", {S, r.select(1, t)}));
  }
  const Tensor centred = o - o.mean(-1, true);
  Tensor y = (centred / (centred.square().mean(-1, true) + 64e-5).sqrt()).flatten(2);
  y = y * p["ln_x.weight"] + p["ln_x.bias"] + ((r * written * p["r_k"]).sum(-1, true) * v).flatten(2);
  return at::linear(y * gate, p["output.weight"]);
}

TEST(RWKV7, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t H = 3, D = 15;
  const auto mixer = random_mixer("rwkv7",
                                  {{"num_attention_heads", H},
                                   {"decay_low_rank_dim", 4},
                                   {"a_low_rank_dim", 5},
                                   {"gate_low_rank_dim", 7},
                                   {"chunk_size", 4}},
                                  D);
  const Tensor x = normal({2, 13, D}, 1, at::kDouble);
  EXPECT_CLOSE(read_all(*mixer, x), plain_layer(mixer->named_parameters(), x, H), 1e-10);
}

TEST(RWKV7, ErrorsNameTheTensor) {
  RankOneInput in = input();
  in.b = in.b.slice(3, 0, 4);
  EXPECT_ERROR(rank_one_chunked(in, 8), "rwkv7: b is [3, 29, 2, 4], expected [B=3, T=29, H=2, K=5]");
}

}  // namespace
}  // namespace lineal
