// One token of rows of a pool, in place, and one token into a new state, against the references in float64 on those
// rows alone. The recurrences' tests have the latter themselves.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "core/error.h"
#include "kernels/kernels.h"
#include "mixers/linear_recurrence.h"
#include "mixers/mamba.h"
#include "mixers/short_conv.h"
#include "mixers/ttt.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t kPool = 5;
const std::vector<int64_t> kRows = {4, 0, 2};
constexpr int64_t kSessions = 3;

using Tensors = std::vector<Tensor*>;

Tensors tensors(kernels::RecurrenceInput& in) { return {&in.q, &in.k, &in.v, &in.beta, &in.g, &in.S}; }
Tensors tensors(kernels::ScanInput& in) {
  return {&in.u, &in.delta, &in.z, &in.B, &in.C, &in.A, &in.D, &in.bias, &in.h};
}
Tensors tensors(kernels::ConvInput& in) { return {&in.x, &in.weight, &in.bias, &in.window}; }
Tensors tensors(kernels::TTTInput& in) {
  Tensors list = {&in.q, &in.k, &in.v, &in.eta, &in.scale, &in.gamma, &in.beta};
  for (auto* weights : {&in.initial, &in.W, &in.D}) {
    for (Tensor& weight : *weights) list.push_back(&weight);
  }
  return list;
}

Tensor answer(const kernels::RecurrenceOutput& out) { return out.o; }
Tensor answer(const kernels::ScanOutput& out) { return out.y; }
Tensor answer(const kernels::ConvOutput& out) { return out.y; }
Tensor answer(const kernels::TTTOutput& out) { return out.o; }

template <class Input>
Input wide(Input in) {
  for (Tensor* x : tensors(in)) {
    if (x->defined()) *x = x->to(at::kDouble);
  }
  return in;
}

template <class Output>
void expect_same(const Output& got, std::vector<Tensor> state, Output expected, double tolerance) {
  EXPECT_CLOSE_RMS(answer(got), answer(expected), tolerance);
  const auto wanted = expected.state();
  ASSERT_EQ(state.size(), wanted.size());
  for (size_t i = 0; i < state.size(); ++i) {
    EXPECT_CLOSE_RMS(state[i], *wanted[i], std::min(tolerance, 1e-5)) << "part " << i;
  }
}

/// `in` reads kSessions tokens and holds a pool; `starts`: a document begins with the second of them.
template <class Input, class Output, class Reference>
void expect_reference(const kernels::Operation<Output, Input>& operation, const Reference& reference, const Input& in,
                      double tolerance) {
  const at::NoGradGuard no_grad;
  const int threads = at::get_num_threads();
  const Rows rows(kRows, kPool);
  kernels::choose(kernels::Choice::fused);
  std::vector<Tensor> first;
  for (const int count : {1, 3}) {
    at::set_num_threads(count);
    Input pool = in, own = in;
    std::vector<Tensor> before;
    for (Tensor* part : pool.state()) {
      before.push_back(*part);
      *part = part->clone();
    }
    pool.rows = &rows;
    const Output got = kernels::use(operation, reference, pool);
    kernels::take_rows(rows, own.state());
    std::vector<Tensor> results = {answer(got)}, stepped;
    for (size_t i = 0; i < before.size(); ++i) {
      const Tensor& part = *pool.state()[i];
      results.push_back(part);
      stepped.push_back(part.index_select(0, rows.index()));
      for (const int64_t row : {1, 3}) EXPECT_EQ(bit_difference(part[row], before[i][row]), "") << "part " << i;
    }
    expect_same(got, stepped, reference(wide(own)), tolerance);
    for (size_t i = 0; i < first.size(); ++i)
      EXPECT_EQ(bit_difference(results[i], first[i]), "") << count << " threads";
    first = results;

    own.starts = at::zeros({kSessions, 1}, at::kBool);
    own.starts[1][0] = true;
    Output alone = kernels::use(operation, reference, own);
    std::vector<Tensor> state;
    for (Tensor* part : alone.state()) state.push_back(*part);
    expect_same(alone, state, reference(wide(own)), tolerance);
  }
  at::set_num_threads(threads);
  kernels::choose(kernels::Choice::automatic);
}

double tolerance(at::ScalarType type) { return type == at::kFloat ? 1e-5 : 5e-3; }

TEST(FusedStep, LinearRecurrences) {
  for (const auto& [K, V] : std::vector<std::pair<int64_t, int64_t>>{{13, 37}, {64, 80}}) {
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      for (const bool delta : {false, true}) {
        SCOPED_TRACE(text("K ", K, " V ", V, " ", type, delta ? " delta" : ""));
        const int64_t H = 33;  // enough for several threads
        kernels::RecurrenceInput in;
        in.q = normal({kSessions, 1, H, K}, 1).to(type);
        in.k = (normal({kSessions, 1, H, K}, 2) / std::sqrt(static_cast<double>(K))).to(type);
        in.v = normal({kSessions, 1, H, V}, 3).to(type);
        if (delta) in.beta = normal({kSessions, 1, H}, 4).sigmoid();
        in.S = normal({kPool, H, K, V}, 5);
        expect_reference(delta ? kernels::delta_rule : kernels::linear_attention, linear_recurrence_reference, in,
                         tolerance(type));
      }
    }
  }
}

TEST(FusedStep, SelectiveScan) {
  for (const int64_t N : {3, 16, 21}) {
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(text("N ", N, " ", type));
      const int64_t D = 2 * 1037, G = 2;
      kernels::ScanInput in;
      in.u = normal({kSessions, 1, D}, 1).to(type), in.delta = normal({kSessions, 1, D}, 2).to(type);
      in.z = normal({kSessions, 1, D}, 3).to(type);
      in.A = -normal({D, N}, 4).square();
      in.B = normal({kSessions, 1, G, N}, 5).to(type), in.C = normal({kSessions, 1, G, N}, 6).to(type);
      in.D = normal({D}, 7), in.bias = normal({D}, 8);
      in.softplus = true;
      in.h = normal({kPool, D, N}, 9);
      const auto reference = [](const kernels::ScanInput& x) {
        return around_scan(x, [](const Selective& core, const Tensor& h, const Segments& documents) {
          return selective_scan_reference(core, h, documents);
        });
      };
      expect_reference(kernels::selective_scan, reference, in, tolerance(type));
    }
  }
}

TEST(FusedStep, ShortConvolution) {
  for (const int64_t J : {1, 4}) {
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(text("J ", J, " ", type));
      const int64_t D = 8197;
      kernels::ConvInput in;
      in.x = normal({kSessions, 1, D}, 1).to(type);
      in.weight = normal({D, 1, J}, 2), in.bias = normal({D}, 3);
      in.window = normal({kPool, J - 1, D}, 4);
      in.silu = true;
      expect_reference(kernels::short_conv, short_conv_reference, in, tolerance(type));
    }
  }
}

/// At a document's start, inside an inner batch and at its end.
void expect_ttt(const kernels::Operation<kernels::TTTOutput, kernels::TTTInput>& operation, const InnerModel& model,
                int64_t K, bool bias, bool norm, at::ScalarType type) {
  SCOPED_TRACE(text(operation.name, " K ", K, bias ? " bias" : "", norm ? " norm " : " ", type));
  const int64_t H = 3, C = 5;
  kernels::TTTInput in;
  in.q = normal({kSessions, 1, H, K}, 1).to(type), in.k = normal({kSessions, 1, H, K}, 2).to(type);
  in.v = normal({kSessions, 1, H, K}, 3).to(type);
  in.eta = normal({kSessions, 1, H}, 4).sigmoid() / static_cast<double>(K);
  in.scale = normal({C}, 5).abs() / C;
  if (norm) in.gamma = 1 + 0.1 * normal({H, K}, 6), in.beta = 0.1 * normal({H, K}, 7);
  in.position = at::tensor({0, 8, 9}, at::kLong);
  in.residual = norm;
  uint64_t seed = 10;
  for (const auto& weight : model.weights(K)) {
    auto shape = weight.shape;
    shape.insert(shape.begin(), H);
    in.initial.push_back(0.1 * normal(shape, seed++));
    shape.insert(shape.begin(), kPool);
    in.W.push_back(0.1 * normal(shape, seed++));
    in.D.push_back(0.1 * normal(shape, seed++));
    in.D.back()[kRows[0]].zero_();  // the row that begins
  }
  const auto reference = [&](const kernels::TTTInput& x) { return ttt_reference(model, x, /*dual=*/true); };
  expect_reference(operation, reference, in, tolerance(type));
}

TEST(FusedStep, TTT) {
  for (const int64_t K : {6, 20, 64}) {
    for (const bool bias : {true, false}) {
      for (const bool norm : {true, false}) {
        for (const auto type : {at::kFloat, at::kBFloat16}) {
          expect_ttt(kernels::ttt_linear, *linear_inner_model(bias), K, bias, norm, type);
          expect_ttt(kernels::ttt_mlp, *mlp_inner_model(bias), K, bias, norm, type);
        }
      }
    }
  }
}

/// What cannot be stepped in place, and what is not a step of these rows.
TEST(FusedStep, Refuses) {
  const at::NoGradGuard no_grad;
  const Rows rows(kRows, kPool);
  kernels::ConvInput in{.x = normal({kSessions, 1, 6}, 1),
                        .weight = normal({6, 1, 4}, 2),
                        .bias = normal({6}, 3),
                        .window = normal({kPool, 3, 6}, 4),
                        .rows = &rows};
  const auto run = [&](const kernels::ConvInput& x) { return kernels::short_conv.fused_form(x); };
  EXPECT_TRUE(run(in).has_value());
  kernels::ConvInput other = in;
  other.window = in.window.transpose(1, 2).contiguous().transpose(1, 2);
  EXPECT_FALSE(run(other).has_value());
  other = in, other.starts = at::zeros({kSessions, 1}, at::kBool);
  EXPECT_ERROR(run(other), "short_conv: rows of a pool step in place, expected no documents");
  other = in, other.x = normal({kSessions, 2, 6}, 1);
  EXPECT_ERROR(run(other), "short_conv: [B, T] are 3 and 2, expected 3 and 1 for as many rows");
  other = in, other.window = normal({kPool + 1, 3, 6}, 4);
  EXPECT_ERROR(run(other), "short_conv: window is [6, 3, 6], expected [P=5, J-1=3, D=6]");
  kernels::RecurrenceInput recurrence{.q = normal({kSessions, 1, 2, 6}, 1),
                                      .k = normal({kSessions, 1, 2, 6}, 2),
                                      .v = normal({kSessions, 1, 2, 7}, 3),
                                      .S = normal({kPool + 1, 2, 6, 7}, 4),
                                      .rows = &rows};
  EXPECT_ERROR(kernels::linear_attention.fused_form(recurrence),
               "linear_attention: the pool holds 6 sequences, its rows were chosen of 5");
}

}  // namespace
}  // namespace lineal
