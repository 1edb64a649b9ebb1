// Work is counted by the products of the formulas, a multiplication and an addition being two: of the forward pass
// those of the form that needs the fewest, of the backward pass two for each of the forward pass. Elementwise parts,
// and what a kernel computes again to save memory, are not counted. Traffic: the backward pass reads the inputs and the
// gradient of o and writes the inputs' gradients; states are small beside them.
#include "bench/operations.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "kernels/kernels.h"
#include "mixers/delta_net.h"
#include "mixers/linear_attention.h"
#include "mixers/mamba.h"
#include "mixers/ttt.h"

namespace lineal {
namespace {

using Sizes = OperationSizes;

/// Leaves, and o as a function of them.
struct Prepared {
  std::vector<Tensor> leaves;
  std::function<Tensor()> o;
};

struct Benched {
  const kernels::Uses& operation;
  Prepared (*prepare)(const Sizes&);
  /// Of one token, all heads.
  double (*flops)(const Sizes&);   // forward; three times as many with the backward pass
  double (*inputs)(const Sizes&);  // floats
  double (*outputs)(const Sizes&);
};

Tensor random(std::vector<Tensor>& leaves, at::IntArrayRef shape, double scale = 1, double offset = 0) {
  leaves.push_back((at::randn(shape) * scale + offset).requires_grad_());
  return leaves.back();
}

Tensor unit(const Tensor& x) { return (x / x.norm(2, -1, /*keepdim=*/true)).detach().requires_grad_(); }

Prepared prepare_ttt(const kernels::Operation<kernels::TTTOutput, kernels::TTTInput>& operation,
                     std::shared_ptr<InnerModel> model, const Sizes& n) {
  Prepared result;
  const auto K = static_cast<double>(n.K);
  kernels::TTTInput in;
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = random(result.leaves, {n.B, n.T, n.H, n.K});
  in.eta = random(result.leaves, {n.B, n.T, n.H}, 0.1 / K, 0.5 / K);
  in.scale = random(result.leaves, {Sizes::C}, 0.01, 0.2);
  in.gamma = random(result.leaves, {n.H, n.K}, 0.1, 1), in.beta = random(result.leaves, {n.H, n.K}, 0.1);
  for (const auto& weight : model->weights(n.K)) {
    std::vector<int64_t> shape = weight.shape;
    shape.insert(shape.begin(), n.H);
    in.initial.push_back(random(result.leaves, shape, 0.02));
    shape.insert(shape.begin(), n.B);
    in.W.push_back(in.initial.back().detach().expand(shape).contiguous());
    in.D.push_back(at::zeros(shape));
  }
  in.position = at::zeros({n.B}, at::kLong);
  result.o = [=, &operation] {
    const auto reference = [&](const kernels::TTTInput& input) { return ttt_reference(*model, input, /*dual=*/true); };
    return kernels::use(operation, reference, in).o;
  };
  return result;
}

Prepared prepare_recurrence(const kernels::Operation<kernels::RecurrenceOutput, kernels::RecurrenceInput>& operation,
                            bool delta, const Sizes& n) {
  Prepared result;
  kernels::RecurrenceInput in;
  in.q = random(result.leaves, {n.B, n.T, n.H, n.K}, 1 / std::sqrt(static_cast<double>(n.K)));
  in.k = unit(at::randn({n.B, n.T, n.H, n.K}));
  result.leaves.push_back(in.k);
  in.v = random(result.leaves, {n.B, n.T, n.H, n.K});
  if (delta) in.beta = random(result.leaves, {n.B, n.T, n.H}, 0.1, 0.5);
  in.S = at::zeros({n.B, n.H, n.K, n.K});
  result.o = [=, &operation] {
    const auto reference = [&](const kernels::RecurrenceInput& input) -> kernels::RecurrenceOutput {
      constexpr int64_t kChunk = 64;
      auto [o, S] = delta ? delta_rule_chunked(input.q, input.k, input.v, input.beta, input.S, kChunk)
                          : linear_attention_chunked(input.q, input.k, input.v, input.S, kChunk);
      return {o, S};
    };
    return kernels::use(operation, reference, in).o;
  };
  return result;
}

Prepared prepare_scan(const Sizes& n) {
  constexpr int64_t kChunk = 32;
  const int64_t D = n.H * n.K;
  Prepared result;
  kernels::ScanInput in;
  in.u = random(result.leaves, {n.B, n.T, D});
  in.delta = random(result.leaves, {n.B, n.T, D}, 0.001, 0.01);
  in.A = random(result.leaves, {D, Sizes::N}, 0.1, -2);
  for (Tensor* x : {&in.B, &in.C}) *x = random(result.leaves, {n.B, n.T, 1, Sizes::N});
  in.h = at::zeros({n.B, D, Sizes::N});
  result.o = [=] {
    const auto reference = [&](const kernels::ScanInput& input) {
      return around_scan(input, [&](const Selective& core, const Tensor& h, const Segments& documents) {
        return selective_scan(core, h, kChunk, documents);
      });
    };
    return kernels::use(kernels::selective_scan, reference, in).y;
  };
  return result;
}

double per_head(const Sizes& n, double count) { return static_cast<double>(n.H) * count; }

const std::vector<Benched>& benched() {
  static const std::vector<Benched> all = {
      {kernels::ttt_linear,
       [](const Sizes& n) { return prepare_ttt(kernels::ttt_linear, linear_inner_model(/*bias=*/true), n); },
       // k W, q W and k^T G; the lower halves of q k^T and its product with G
       [](const Sizes& n) { return per_head(n, 6.0 * n.K * n.K + 2.0 * (n.C + 1) * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K + 1); }, [](const Sizes& n) { return per_head(n, n.K); }},
      {kernels::ttt_mlp,
       [](const Sizes& n) { return prepare_ttt(kernels::ttt_mlp, mlp_inner_model(/*bias=*/true), n); },
       // k W1, h W2, G2 W2^T, q W1, a W2, k^T G1 and h^T G2; the lower halves of q k^T and a h^T and their products
       // with G1 and G2
       [](const Sizes& n) { return per_head(n, 56.0 * n.K * n.K + 10.0 * (n.C + 1) * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K + 1); }, [](const Sizes& n) { return per_head(n, n.K); }},
      {kernels::linear_attention,
       [](const Sizes& n) { return prepare_recurrence(kernels::linear_attention, /*delta=*/false, n); },
       // k v^T and S^T q
       [](const Sizes& n) { return per_head(n, 4.0 * n.K * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K); }, [](const Sizes& n) { return per_head(n, n.K); }},
      {kernels::delta_rule, [](const Sizes& n) { return prepare_recurrence(kernels::delta_rule, /*delta=*/true, n); },
       // S^T k, k u^T and S^T q
       [](const Sizes& n) { return per_head(n, 6.0 * n.K * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K + 1); }, [](const Sizes& n) { return per_head(n, n.K); }},
      {kernels::selective_scan, prepare_scan,
       // of each number of the state exp(dt A), counted as two, its product with h, dt u B, their sum and C . h
       [](const Sizes& n) { return per_head(n, 7.0 * n.K * n.N); },
       [](const Sizes& n) { return per_head(n, 2.0 * n.K) + 2 * n.N; },
       [](const Sizes& n) { return per_head(n, n.K); }},
  };
  return all;
}

void add_passes(const Benched& bench, const Sizes& sizes, std::vector<OperationPass>& passes) {
  const auto tokens = static_cast<double>(sizes.B * sizes.T);
  const Prepared prepared = bench.prepare(sizes);
  const double flops = tokens * bench.flops(sizes), bytes = 4 * tokens;
  const double inputs = bench.inputs(sizes), outputs = bench.outputs(sizes);
  const std::string name = bench.operation.name;
  const auto forward = [prepared] {
    const at::NoGradGuard no_grad;
    prepared.o();
  };
  const Tensor weights = at::randn({sizes.B, sizes.T, sizes.H, sizes.K});
  const auto both = [prepared, weights] {
    const Tensor o = prepared.o();
    torch::autograd::grad({o}, prepared.leaves, {weights.view_as(o)});
  };
  passes.push_back({name, {name, forward}, flops, bytes * (inputs + outputs)});
  passes.push_back({name + " both", {name + " both", both}, 3 * flops, bytes * (3 * inputs + 2 * outputs)});
}

}  // namespace

std::vector<OperationPass> operation_passes(const std::vector<std::string>& names, const OperationSizes& sizes) {
  std::vector<std::string> known;
  for (const Benched& bench : benched()) known.push_back(bench.operation.name);
  for (const std::string& name : names) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail_unknown("bench op", "operation", name, known);
    }
  }
  at::manual_seed(0);
  std::vector<OperationPass> passes;
  for (const Benched& bench : benched()) {
    const bool wanted = names.empty() || std::find(names.begin(), names.end(), bench.operation.name) != names.end();
    if (wanted) add_passes(bench, sizes, passes);
  }
  return passes;
}

}  // namespace lineal
