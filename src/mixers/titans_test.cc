#include "mixers/titans.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"
#include "mixers/linear_recurrence.h"
#include "testing/plain_layer.h"

namespace lineal {
namespace {

Memory zeros(const MemoryInput& in) {
  const Tensor S = at::zeros({in.k.size(0), in.k.size(2), in.k.size(3), in.v.size(3)}, in.k.options());
  return {S, S, S};
}

/// The paper's formula, with the gradient at the last memory and at the start of inner batches of 8. (The goldens hold
/// the public library's as well, whose gradient is not that of its loss.)
TEST(Titans, Golden) {
  const Golden golden("linear_family/titans");
  const auto scalar = [&](const char* name) { return golden[name].squeeze(3); };
  const MemoryInput in{golden["q"],
                       golden["k"],
                       golden["v"],
                       scalar("theta"),
                       scalar("eta"),
                       scalar("alpha"),
                       at::arange(32).unsqueeze(0),
                       {}};
  Memory memory = zeros(in);
  EXPECT_CLOSE(titans_memory(in, memory, 1), golden["o_paper"], 1e-5);
  EXPECT_CLOSE(memory.S, golden["M_paper"], 1e-5);
  memory = zeros(in);
  EXPECT_CLOSE(titans_memory(in, memory, 8), golden["o_paper_chunk"], 1e-5);
}

MemoryInput input(int64_t B, int64_t T) {
  const int64_t H = 2, K = 5, V = 7;
  const auto d = at::kDouble;
  return {normal({B, T, H, K}, 1, d),        0.4 * normal({B, T, H, K}, 2, d),
          normal({B, T, H, V}, 3, d),        normal({B, T, H}, 4, d).sigmoid(),
          normal({B, T, H}, 5, d).sigmoid(), normal({B, T, H}, 6, d).sigmoid(),
          at::arange(T).expand({B, T}),      {}};
}

/// The update is the gradient that autograd finds of the loss.
TEST(Titans, TheUpdateIsTheGradientOfTheLoss) {
  MemoryInput in = input(1, 1);
  Memory memory = zeros(in);
  memory.S = normal(memory.S.sizes(), 7, at::kDouble).requires_grad_();
  const Tensor found = at::matmul(in.k.select(1, 0).unsqueeze(2), memory.S).squeeze(2);
  const Tensor loss = (found - in.v.select(1, 0)).square().sum();
  const Tensor gradient = torch::autograd::grad({loss}, {memory.S})[0], before = memory.S.detach();
  titans_memory(in, memory, 1);
  const auto per_head = [](const Tensor& x) { return x.select(1, 0).unsqueeze(2).unsqueeze(3); };
  EXPECT_CLOSE(memory.momentum, -per_head(in.theta) * gradient, 1e-12);
  EXPECT_CLOSE(memory.S, (1 - per_head(in.alpha)) * before + memory.momentum, 1e-12);
}

TEST(Titans, WithoutMomentumOrForgettingItIsTheDeltaRule) {
  MemoryInput in = input(2, 19);
  in.eta = at::zeros_like(in.eta), in.alpha = at::zeros_like(in.alpha);
  Memory memory = zeros(in);
  const auto expected =
      linear_recurrence_reference({.q = in.q, .k = in.k, .v = in.v, .beta = 2 * in.theta, .S = memory.S});
  EXPECT_CLOSE(titans_memory(in, memory, 1), expected.o, 1e-12);
  EXPECT_CLOSE(memory.S, expected.S, 1e-12);
}

/// The layer as titans.cc's head has it, one token after another.
Tensor plain_layer(const NamedWeights& weights, const Tensor& x, int64_t H, int64_t C) {
  const Tensor q = plain_unit(plain_view(weights, "q", x, H, true)),
               k = plain_unit(plain_view(weights, "k", x, H, true));
  const Tensor v = plain_view(weights, "v", x, H, true);
  const int64_t B = x.size(0), T = x.size(1), K = q.size(3), V = v.size(3);
  const auto rate = [&](const std::string& name) {
    return (1 / (1 + at::linear(x, weights[name + "_proj.weight"]).neg().exp())).unsqueeze(3).unsqueeze(4);
  };
  const Tensor step = rate("theta"), eta = rate("eta");
  const Tensor forgetting = at::linear(x, weights["alpha_proj.weight"]) + weights["alpha_proj.bias"];
  const Tensor kept = 1 - (1 / (1 + forgetting.neg().exp())).unsqueeze(3).unsqueeze(4);
  Tensor S = at::zeros({B, H, K, V}, x.options()), Z = S, start = S, o = at::zeros({B, T, H, V}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    if (t % C == 0) start = S;
    const Tensor error = at::einsum("bhkv,bhk->bhv", {start, k.select(1, t)}) - v.select(1, t);
    Z = eta.select(1, t) * Z - step.select(1, t) * at::einsum("bhk,bhv->bhkv", {k.select(1, t), error});
    S = kept.select(1, t) * S + Z;
    o.select(1, t).copy_(at::einsum("bhkv,bhk->bhv", {S, q.select(1, t)}));
  }
  return plain_output(weights, o, x, /*gate=*/true);
}

TEST(Titans, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t H = 3, D = 15, C = 4;
  const auto mixer = random_mixer("titans", {{"num_attention_heads", H}, {"mini_batch_size", C}}, D);
  const Tensor x = normal({2, 13, D}, 1, at::kDouble);
  EXPECT_CLOSE(read_all(*mixer, x), plain_layer(mixer->named_parameters(), x, H, C), 1e-11);
}

TEST(Titans, ErrorsNameTheTensor) {
  MemoryInput in = input(2, 3);
  Memory memory = zeros(in);
  in.eta = in.eta.slice(1, 1);
  EXPECT_ERROR(titans_memory(in, memory, 1), "titans: eta is [2, 2, 2], expected [B=2, T=3, H=2]");
}

}  // namespace
}  // namespace lineal
