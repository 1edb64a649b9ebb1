// The head's loss over pieces of the tokens against LibTorch's cross-entropy in float64.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/kernels.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using kernels::TokenLossInput;

Tensor by_cross_entropy(const TokenLossInput& in) {
  const Tensor nats = at::cross_entropy_loss(at::linear(in.hidden, in.head), in.targets, {}, at::Reduction::None);
  return (nats * in.weights).sum();
}

Tensor fused(const TokenLossInput& in) {
  kernels::choose(kernels::Choice::fused);
  const Tensor loss = kernels::use(kernels::token_loss, by_cross_entropy, in);
  kernels::choose(kernels::Choice::automatic);
  return loss;
}

struct Case {
  int64_t R, N;
  at::ScalarType type = at::kFloat;
};

TokenLossInput input_of(const Case& c) {
  const int64_t D = 13;
  TokenLossInput in;
  in.hidden = normal({c.R, D}, 1).to(c.type);
  in.head = normal({c.N, D}, 2).to(c.type == at::kDouble ? at::kDouble : at::kFloat);
  in.targets = at::arange(c.R).mul(7919).remainder(c.N);
  in.weights = (at::arange(c.R).remainder(3) != 0).to(at::kFloat) / static_cast<double>(c.R);
  return in;
}

/// Three times the loss, and the gradients of hidden and head.
std::vector<Tensor> outcome(TokenLossInput in, Tensor (*f)(const TokenLossInput&)) {
  in.hidden = in.hidden.detach().requires_grad_(), in.head = in.head.detach().requires_grad_();
  const Tensor loss = f(in) * 3;
  const auto gradients = torch::autograd::grad({loss}, {in.hidden, in.head});
  return {loss, gradients[0], gradients[1]};
}

class TokenLoss : public testing::TestWithParam<Case> {};

TEST_P(TokenLoss, IsCrossEntropy) {
  const TokenLossInput in = input_of(GetParam());
  TokenLossInput precise = in;
  precise.hidden = in.hidden.to(at::kDouble), precise.head = in.head.to(at::kDouble);
  const auto got = outcome(in, fused), expected = outcome(precise, by_cross_entropy);
  const bool half = GetParam().type == at::kBFloat16;
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_CLOSE_RMS(got[i].to(at::kDouble), expected[i], half ? (i == 0 ? 5e-3 : 8e-3) : (i == 0 ? 1e-5 : 1e-4));
  }
  EXPECT_EQ(got[0].scalar_type(), GetParam().type == at::kDouble ? at::kDouble : at::kFloat);
  EXPECT_EQ(got[1].scalar_type(), in.hidden.scalar_type());
  EXPECT_EQ(got[2].scalar_type(), in.head.scalar_type());
  const at::NoGradGuard no_grad;
  EXPECT_CLOSE(fused(in) * 3, got[0].detach(), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Sizes, TokenLoss,
                         testing::Values(Case{1, 5}, Case{37, 11}, Case{37, 1}, Case{50, 300'001},  // pieces of 13
                                         Case{37, 11, at::kDouble}, Case{1000, 257, at::kBFloat16}));

TEST(TokenLossValues, OfNoWeightAreZeroAndOfLargeLogitsFinite) {
  TokenLossInput in = input_of({9, 7});
  in.hidden = in.hidden * 1e4;
  for (const Tensor& x : outcome(in, fused)) EXPECT_TRUE(x.isfinite().all().item<bool>());
  in.weights.zero_();
  for (const Tensor& x : outcome(in, fused)) EXPECT_EQ(x.count_nonzero().item<int64_t>(), 0);
  in.head = in.head.slice(1, 1);
  EXPECT_ERROR(fused(in), "token_loss: head is [7, 12], expected [N, D=13]");
}

}  // namespace
}  // namespace lineal
