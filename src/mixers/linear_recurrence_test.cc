#include "mixers/linear_recurrence.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "core/segments.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using kernels::RecurrenceInput;
using kernels::RecurrenceOutput;

/// chunk_size 0: the recurrence.
RecurrenceOutput run(const RecurrenceInput& in, int64_t chunk_size) {
  return chunk_size == 0 ? linear_recurrence_reference(in) : linear_recurrence_chunked(in, chunk_size);
}

/// The optional inputs in the goldens' names.
std::vector<std::pair<std::string, Tensor*>> optional_inputs(RecurrenceInput& in) {
  return {{"beta", &in.beta}, {"g", &in.g}, {"gk", &in.g}};
}

TEST(LinearRecurrence, Goldens) {
  for (const char* id : {"linear_attn", "retention", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda"}) {
    const Golden golden(text("linear_family/", id));
    for (const int64_t C : {0, 7, 32}) {
      SCOPED_TRACE(text(id, ", chunk_size ", C));
      RecurrenceInput in;
      std::vector<std::pair<std::string, Tensor>> leaves;
      const auto leaf = [&](const std::string& name) {
        return leaves.emplace_back(name, golden[name].clone().requires_grad_()).second;
      };
      in.q = leaf("q") / std::sqrt(16.0);
      in.k = leaf("k"), in.v = leaf("v");
      for (const auto& [name, input] : optional_inputs(in)) {
        if (golden.has(name)) *input = leaf(name);
      }
      if (std::string(id) == "retention") {
        in.g = at::tensor({1 - 1.0 / 32, 1 - 1.0 / 64}, at::kFloat).log().expand({1, 32, 2});
      }
      in.S = at::zeros({1, 2, 16, 16});
      const auto out = run(in, C);
      EXPECT_CLOSE(out.o, golden["o"], 1e-5);
      EXPECT_CLOSE(out.S, golden["final_state"], 1e-5);
      std::vector<Tensor> inputs;
      for (const auto& [name, tensor] : leaves) inputs.push_back(tensor);
      const auto gradients = torch::autograd::grad({(out.o * golden["probe"]).sum()}, inputs);
      for (size_t i = 0; i < inputs.size(); ++i) {
        EXPECT_CLOSE(gradients[i], golden["grad." + leaves[i].first], 1e-4) << leaves[i].first;
      }
      if (!golden.has("o_init")) continue;
      in.S = golden["init_state"];
      const auto from = run(in, C);
      EXPECT_CLOSE(from.o, golden["o_init"], 1e-5);
      EXPECT_CLOSE(from.S, golden["final_state_init"], 1e-5);
    }
  }
}

struct Sizes {
  int64_t B = 3, T = 29, H = 2, K = 5, V = 7;
};

Segments documents(const Sizes& n) {
  Segments segments{at::zeros({n.B, n.T}, at::kBool)};
  segments.starts[0][0] = true;
  segments.starts[1][9] = true;
  segments.starts[1][11] = true;
  segments.starts[2][28] = true;
  return segments;
}

/// With g of -g_scale x^2: no decay for 0, per channel or per head.
RecurrenceInput input(const Sizes& n, bool delta, double g_scale, bool channels, at::ScalarType type) {
  const Tensor k = normal({n.B, n.T, n.H, n.K}, 2, type);
  RecurrenceInput in{.q = normal({n.B, n.T, n.H, n.K}, 1, type),
                     .k = k / k.norm(2, {-1}, true),
                     .v = normal({n.B, n.T, n.H, n.V}, 3, type),
                     .S = normal({n.B, n.H, n.K, n.V}, 4, type)};
  if (delta) in.beta = normal({n.B, n.T, n.H}, 5, type).sigmoid();
  if (g_scale == 0) return in;
  in.g = -g_scale * (channels ? normal({n.B, n.T, n.H, n.K}, 6, type) : normal({n.B, n.T, n.H}, 6, type)).square();
  return in;
}

TEST(LinearRecurrence, ChunkedIsTheRecurrence) {
  const Sizes n;
  for (const bool delta : {false, true}) {
    for (const auto& [g_scale, channels] :
         std::vector<std::pair<double, bool>>{{0, false}, {0.3, false}, {0.3, true}}) {
      for (const auto& segments : {Segments{}, documents(n)}) {
        const auto outcome = [&](int64_t C) {
          RecurrenceInput in = input(n, delta, g_scale, channels, at::kDouble);
          in.starts = segments.starts;
          std::vector<Tensor> leaves;
          for (Tensor* x : {&in.q, &in.k, &in.v, &in.beta, &in.g, &in.S}) {
            if (x->defined()) leaves.push_back(x->requires_grad_());
          }
          const auto out = run(in, C);
          auto result = torch::autograd::grad({out.o.square().sum() + out.S.pow(3).sum()}, leaves);
          result.push_back(out.o);
          result.push_back(out.S);
          return result;
        };
        const auto expected = outcome(0);
        for (const int64_t C : {1, 4, 29, 64}) {
          const auto actual = outcome(C);
          for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_CLOSE(actual[i], expected[i], 1e-11) << "delta " << delta << ", g " << g_scale << ", tensor " << i;
          }
        }
      }
    }
  }
}

/// Decays down to exp(-1000) beside those of hardly anything, and a decay of 0: nothing overflows and in float32 no
/// digit is lost to the differences of large sums.
TEST(LinearRecurrence, StrongDecaysStayExact) {
  const Sizes n{.T = 50};
  for (const bool delta : {false, true}) {
    for (const bool channels : {false, true}) {
      RecurrenceInput in = input(n, delta, 1, channels, at::kFloat);
      in.g = at::where(in.g < -1.5, 100 * in.g, 0.01 * in.g).clamp_min(-1000);
      in.g.select(1, 20).fill_(-INFINITY);
      RecurrenceInput exact = in;
      for (Tensor* x : {&exact.q, &exact.k, &exact.v, &exact.beta, &exact.g, &exact.S}) {
        if (x->defined()) *x = x->to(at::kDouble);
      }
      const auto out = linear_recurrence_chunked(in, 50), expected = linear_recurrence_reference(exact);
      EXPECT_CLOSE_RMS(out.o, expected.o, 1e-6);
      EXPECT_CLOSE_RMS(out.S, expected.S, 1e-6);
    }
  }
}

TEST(LinearRecurrence, RoundedInputsAreComputedInTheTypeOfTheState) {
  for (const bool delta : {false, true}) {
    RecurrenceInput in = input({}, delta, 0.3, /*channels=*/false, at::kFloat), wide = in;
    for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->to(at::kBFloat16);
    wide.q = in.q, wide.k = in.k, wide.v = in.v;
    for (Tensor* x : {&wide.q, &wide.k, &wide.v, &wide.beta, &wide.g, &wide.S}) {
      if (x->defined()) *x = x->to(at::kDouble);
    }
    const auto expected = linear_recurrence_reference(wide);
    for (const auto& out : {linear_recurrence_chunked(in, 4), linear_recurrence_reference(in)}) {
      EXPECT_EQ(out.o.scalar_type(), at::kBFloat16);
      EXPECT_CLOSE_RMS(out.o, expected.o, 5e-3);
      EXPECT_CLOSE_RMS(out.S, expected.S, 1e-5);
    }
  }
}

/// A decay per channel that is the same in all of them is one per head.
TEST(LinearRecurrence, EqualChannelsAreAHead) {
  const Sizes n;
  for (const bool delta : {false, true}) {
    RecurrenceInput in = input(n, delta, 0.5, /*channels=*/false, at::kDouble);
    const auto expected = linear_recurrence_chunked(in, 8);
    in.g = in.g.unsqueeze(3).expand({n.B, n.T, n.H, n.K});
    EXPECT_CLOSE(linear_recurrence_chunked(in, 8).o, expected.o, 1e-12);
  }
}

/// With orthogonal keys nothing needs correcting: beta 1 makes the delta rule linear attention.
TEST(LinearRecurrence, OrthogonalKeysNeedNoCorrection) {
  const Tensor k = at::eye(11, at::kDouble).view({1, 11, 1, 11});
  RecurrenceInput in{.q = normal({1, 11, 1, 11}, 1, at::kDouble),
                     .k = k,
                     .v = normal({1, 11, 1, 7}, 2, at::kDouble),
                     .S = at::zeros({1, 1, 11, 7}, at::kDouble)};
  const auto expected = linear_recurrence_reference(in);
  in.beta = at::ones({1, 11, 1}, at::kDouble);
  EXPECT_CLOSE(linear_recurrence_chunked(in, 4).o, expected.o, 1e-12);
}

/// beta 1 and a key of length 1 overwrite: asking for the key gives its last value, or what its decay has left of it.
TEST(LinearRecurrence, TheLastValueOfAKeyIsWhatItAnswers) {
  const Tensor keys = at::eye(3, at::kDouble).index_select(0, at::tensor({0, 1, 0, 2, 0, 1, 2}, at::kLong));
  const Tensor k = keys.view({1, 7, 1, 3}), v = normal({1, 7, 1, 5}, 3, at::kDouble);
  RecurrenceInput in{
      .q = k, .k = k, .v = v, .beta = at::ones({1, 7, 1}, at::kDouble), .S = normal({1, 1, 3, 5}, 4, at::kDouble)};
  const Tensor values = v.view({7, 5}).index_select(0, at::tensor({4, 5, 6}, at::kLong));
  const auto out = linear_recurrence_chunked(in, 4);
  EXPECT_CLOSE(out.o, v, 1e-12);
  EXPECT_CLOSE(out.S.view({3, 5}), values, 1e-12);
  in.g = at::full({1, 7, 1}, std::log(0.5), at::kDouble);
  const auto halved = linear_recurrence_chunked(in, 4);
  EXPECT_CLOSE(halved.o, v, 1e-12);
  EXPECT_CLOSE(halved.S.view({3, 5}), values * at::tensor({0.25, 0.5, 1.0}, at::kDouble).unsqueeze(1), 1e-12);
}

TEST(LinearRecurrence, ErrorsNameTheTensor) {
  RecurrenceInput in{.q = at::ones({1, 3, 2, 5}),
                     .k = at::ones({1, 3, 2, 4}),
                     .v = at::ones({1, 3, 2, 7}),
                     .S = at::ones({1, 2, 5, 7})};
  EXPECT_ERROR(linear_recurrence_chunked(in, 4), "linear_attention: k is [1, 3, 2, 4], expected [B=1, T=3, H=2, K=5]");
  in.k = in.q;
  in.beta = at::ones({1, 3, 1});
  EXPECT_ERROR(linear_recurrence_reference(in), "delta_rule: beta is [1, 3, 1], expected [B=1, T=3, H=2]");
  in.beta = Tensor();
  in.g = at::ones({1, 3, 2, 7});
  EXPECT_ERROR(linear_recurrence_chunked(in, 4), "linear_attention: g is [1, 3, 2, 7], expected [B=1, T=3, H=2, K=5]");
}

}  // namespace
}  // namespace lineal
