#include "positions/rope.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/kernels.h"
#include "testing/testing.h"

namespace lineal {
namespace {

struct Tables {
  const char* id;
  double theta;
};

const Tables kTables[] = {{"rope/freqs_d16_b1e4", 1e4}, {"rope/freqs_d128_b5e5", 5e5}};

/// x * cos + rotate_half(x) * sin with the published tables: component j pairs with j + K/2.
TEST(Rope, HalvesAreThePublishedTables) {
  for (const auto& [id, theta] : kTables) {
    SCOPED_TRACE(id);
    const Golden golden(id);
    const Tensor cos = golden["cos.plain"].unsqueeze(1), sin = golden["sin.plain"].unsqueeze(1);  // [T, 1, K]
    const int64_t T = cos.size(0), K = cos.size(2);
    const Tensor x = normal({3, T, 5, K}, 1, at::kDouble);
    const Tensor turned = at::cat({-x.slice(3, K / 2), x.slice(3, 0, K / 2)}, 3);
    const Tensor position = golden["positions"].expand({3, T});
    EXPECT_CLOSE(rope(x, position, theta, RopePairs::halves), x * cos + turned * sin, 1e-11);
  }
}

/// (x_{2i} + x_{2i+1} j) times e^{j p f_i} with the published frequencies.
TEST(Rope, InterleavedTurnsComplexNumbers) {
  for (const auto& [id, theta] : kTables) {
    SCOPED_TRACE(id);
    const Golden golden(id);
    const Tensor frequency = golden["inv_freq.plain"].to(at::kDouble), p = golden["positions"].to(at::kDouble);
    const int64_t T = p.size(0), K = 2 * frequency.size(0);
    const Tensor angle = p.unsqueeze(1) * frequency;  // [T, K/2]
    const Tensor x = normal({3, T, 5, K}, 1, at::kDouble);
    const Tensor turned =
        at::view_as_complex(x.unflatten(3, {K / 2, 2})) * at::polar(at::ones_like(angle), angle).unsqueeze(1);
    const Tensor position = golden["positions"].expand({3, T});
    EXPECT_CLOSE(rope(x, position, theta, RopePairs::interleaved), at::view_as_real(turned).flatten(3), 1e-11);
  }
}

/// Attention of a public implementation whose queries and keys are rotated in halves (queries are then scaled by log
/// n).
TEST(Rope, HalvesGiveThePublishedAttention) {
  const Golden golden("rope/rerope_w6");
  const int64_t T = 24, K = 8;
  const auto tokens = [&](const char* name) { return golden[name].to(at::kDouble).transpose(1, 2); };  // [B, T, H, K]
  const Tensor position = at::arange(T).unsqueeze(0);
  const auto turned = [&](const char* name) {
    return rope(tokens(name), position, 1e4, RopePairs::halves).transpose(1, 2);
  };
  const Tensor q = turned("q") * golden["logn"].unsqueeze(1), k = turned("k");
  const Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(K));
  const Tensor later = at::ones({T, T}, at::kBool).triu(1);
  const Tensor weights = scores.masked_fill(later, -INFINITY).softmax(-1);
  EXPECT_CLOSE(weights, golden["weights.rope_logn"], 1e-11);
  EXPECT_CLOSE(at::matmul(weights, tokens("v").transpose(1, 2)).transpose(1, 2).flatten(2), golden["attn.rope_logn"],
               1e-11);
}

/// Angles are computed in float64, so that far positions are as exact as near ones.
TEST(Rope, FarPositionsOfFloat32AreExact) {
  const Tensor x = normal({1, 1, 1, 16}, 1), position = at::full({1, 1}, 123456789, at::kLong);
  for (const auto pairs : {RopePairs::halves, RopePairs::interleaved}) {
    EXPECT_CLOSE(rope(x, position, 1e4, pairs), rope(x.to(at::kDouble), position, 1e4, pairs), 1e-6);
    EXPECT_EQ(rope(x.to(at::kBFloat16), position, 1e4, pairs).scalar_type(), at::kBFloat16);
  }
}

/// The kernel against the definition in float64, forward and backward, at sizes that leave vectors half empty.
TEST(Rope, FusedIsTheReference) {
  for (const int64_t K : {2, 6, 16, 34, 64, 100}) {
    for (const auto pairs : {RopePairs::interleaved, RopePairs::halves}) {
      for (const auto type : {at::kFloat, at::kBFloat16}) {
        for (const int64_t first : {0, 70000}) {  // a table of few positions, and positions of their own
          SCOPED_TRACE(testing::Message() << "K " << K << ", first position " << first << ", " << type);
          const Tensor position = (at::arange(21).remainder(7) + first).reshape({3, 7});
          const Tensor x = normal({3, 7, 5, K}, 4).to(type), weight = normal({3, 7, 5, K}, 5).to(type);
          const auto outcome = [&](at::ScalarType to, kernels::Choice choice) {
            const Tensor leaf = x.to(to).requires_grad_();
            kernels::choose(choice);
            const Tensor y = rope(leaf, position, 1e4, pairs);
            kernels::choose(kernels::Choice::automatic);
            return std::pair(y, torch::autograd::grad({(y * weight.to(to)).sum()}, {leaf})[0]);
          };
          const auto [y, gradient] = outcome(type, kernels::Choice::fused);
          const auto [expected, expected_gradient] = outcome(at::kDouble, kernels::Choice::reference);
          EXPECT_EQ(y.scalar_type(), type);
          EXPECT_CLOSE_RMS(y.to(at::kDouble), expected, type == at::kFloat ? 1e-5 : 5e-3);
          EXPECT_CLOSE_RMS(gradient.to(at::kDouble), expected_gradient, type == at::kFloat ? 1e-4 : 8e-3);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lineal
