// Work is counted by the products of the formulas, a multiplication and an addition being two: of the forward pass
// those of the form that needs the fewest, of the backward pass two for each of the forward pass. Elementwise parts,
// and what a kernel computes again to save memory, are not counted. Traffic: the backward pass reads the inputs and the
// gradient of o and writes the inputs' gradients; states are small beside them. Of a step the state is what matters: of
// TTT's it reads W and D and writes D, but at the ends of inner batches.
#include "bench/operations.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "kernels/kernels.h"
#include "mixers/feature_attention.h"
#include "mixers/linear_recurrence.h"
#include "mixers/mamba.h"
#include "mixers/ttt.h"
#include "mixers/vq_attention.h"

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
  double (*step_flops)(const Sizes&);  // null: cannot step in place; nor are there the two below
  double (*state)(const Sizes&);       // floats of it
  double (*traffic)(const Sizes&);     // floats of it that a step reads or writes
};

/// Rows of a pool, all of them in turn in a random order.
class Turns {
 public:
  explicit Turns(const Sizes& n) {
    const Tensor order = at::randperm(n.pool, at::kLong);
    for (int64_t i = 0; i + n.sessions <= n.pool; i += n.sessions) {
      rows_.emplace_back(at::IntArrayRef(order.const_data_ptr<int64_t>() + i, static_cast<size_t>(n.sessions)), n.pool);
    }
  }
  /// Null without a pool.
  const Rows* next() { return rows_.empty() ? nullptr : &rows_[next_++ % rows_.size()]; }

 private:
  std::vector<Rows> rows_;
  size_t next_ = 0;
};

/// Sequences of which there are states.
int64_t states(const Sizes& n) { return n.pool > 0 ? n.pool : n.B; }

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
    shape.insert(shape.begin(), states(n));
    in.W.push_back(in.initial.back().detach().expand(shape).contiguous());
    in.D.push_back(at::zeros(shape));
  }
  in.position = at::full({n.B}, n.pool > 0 ? Sizes::C / 2 : 0, at::kLong);
  const auto turns = std::make_shared<Turns>(n);
  result.o = [=, &operation]() mutable {
    const auto reference = [&](const kernels::TTTInput& input) { return ttt_reference(*model, input, /*dual=*/true); };
    in.rows = turns->next();
    return kernels::use(operation, reference, in).o;
  };
  return result;
}

Prepared prepare_recurrence(bool delta, const Sizes& n) {
  Prepared result;
  kernels::RecurrenceInput in;
  in.q = random(result.leaves, {n.B, n.T, n.H, n.K}, 1 / std::sqrt(static_cast<double>(n.K)));
  in.k = unit(at::randn({n.B, n.T, n.H, n.K}));
  result.leaves.push_back(in.k);
  in.v = random(result.leaves, {n.B, n.T, n.H, n.K});
  if (delta) in.beta = random(result.leaves, {n.B, n.T, n.H}, 0.1, 0.5);
  in.S = at::zeros({states(n), n.H, n.K, n.K});
  const auto turns = std::make_shared<Turns>(n);
  result.o = [=]() mutable {
    constexpr int64_t kChunk = 64;
    in.rows = turns->next();
    return linear_recurrence(in, kChunk).o;
  };
  return result;
}

Prepared prepare_features(const Sizes& n) {
  constexpr int64_t kChunk = 64;
  Prepared result;
  kernels::FeatureAttentionInput in{.map = "positive", .epsilon = 1e-6};
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = random(result.leaves, {n.B, n.T, n.H, n.K});
  in.projection = at::randn({Sizes::M, n.K});
  in.scale = std::pow(static_cast<double>(n.K), -0.25);
  in.S = at::zeros({states(n), n.H, Sizes::M, n.K});
  in.peak = at::zeros({states(n), n.H});
  in.fresh = at::zeros({n.B}, at::kBool);
  const auto turns = std::make_shared<Turns>(n);
  result.o = [=]() mutable {
    in.rows = turns->next();
    return feature_attention(in, kChunk).o;
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
  in.h = at::zeros({states(n), D, Sizes::N});
  const auto turns = std::make_shared<Turns>(n);
  result.o = [=]() mutable {
    in.rows = turns->next();
    const auto reference = [&](const kernels::ScanInput& input) {
      return around_scan(input, [&](const Selective& core, const Tensor& h, const Segments& documents) {
        return selective_scan(core, h, kChunk, documents);
      });
    };
    return kernels::use(kernels::selective_scan, reference, in).y;
  };
  return result;
}

constexpr int64_t kVqBlock = 128;

/// The search for codes included, and the codewords that the search leaves.
Prepared prepare_vq(const Sizes& n) {
  Prepared result;
  const double scale = std::pow(static_cast<double>(n.K), -0.25);
  kernels::VqInput in;
  in.r = random(result.leaves, {n.window + 1, n.H, n.K}, scale);
  in.codebook = at::randn({n.H, n.codes, n.K}) * scale;
  in.block = kVqBlock;
  in.position = at::zeros({n.B}, at::kLong);
  const int64_t W = n.window + kVqBlock - 1;
  in.past_k = at::zeros({n.B, W, n.H, n.K}), in.past_v = at::zeros({n.B, W, n.H, n.K});
  in.past_code = at::full({n.B, W, n.H}, n.codes, at::kLong);
  in.count = at::zeros({n.B, n.H, n.codes}, at::kLong);
  in.mean = at::zeros({n.B, n.H, n.codes, n.K});
  if (n.read > 0) {
    at::NoGradGuard no_grad;
    for (Tensor* x : {&in.q, &in.p, &in.v}) *x = at::randn({n.B, n.read, n.H, n.K}) * scale;
    in.code = at::randint(n.codes, {n.B, n.read, n.H});
    in.k = codewords(in.codebook, in.code);
    const kernels::VqOutput after = vq_attention(in);
    in.past_k = after.past_k, in.past_v = after.past_v, in.past_code = after.past_code;
    in.count = after.count, in.mean = after.mean;
    in.position.fill_(n.read);
  }
  const Tensor k = random(result.leaves, {n.B, n.T, n.H, n.K}, scale);
  for (Tensor* x : {&in.q, &in.p}) *x = random(result.leaves, {n.B, n.T, n.H, n.K}, scale);
  in.v = random(result.leaves, {n.B, n.T, n.H, n.K});
  result.o = [=]() mutable {
    in.code = nearest_code(k.detach(), in.codebook);
    in.k = codewords(in.codebook, in.code) + (k - k.detach());
    return vq_attention(in).o;
  };
  return result;
}

/// Tokens that one sees one by one, of T: all before it at most, and half of its block.
double seen(const Sizes& n) {
  return std::min(static_cast<double>(n.read) + 0.5 * static_cast<double>(n.T + 1),
                  static_cast<double>(n.window) + 0.5 * (kVqBlock + 1));
}

double per_head(const Sizes& n, double count) { return static_cast<double>(n.H) * count; }

double square(const Sizes& n) { return per_head(n, 1.0 * n.K * n.K); }
double twice_square(const Sizes& n) { return 2 * square(n); }

const std::vector<Benched>& benched() {
  static const std::vector<Benched> all = {
      {kernels::ttt_linear,
       [](const Sizes& n) { return prepare_ttt(kernels::ttt_linear, linear_inner_model(/*bias=*/true), n); },
       // k W, q W and k^T G; the lower halves of q k^T and its product with G
       [](const Sizes& n) { return per_head(n, 6.0 * n.K * n.K + 2.0 * (n.C + 1) * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K + 1); }, [](const Sizes& n) { return per_head(n, n.K); },
       // k W, q W, q D and k^T G
       [](const Sizes& n) { return per_head(n, 8.0 * n.K * n.K); },
       [](const Sizes& n) { return per_head(n, 2.0 * n.K * (n.K + 1)); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K * (n.K + 1)); }},
      {kernels::ttt_mlp,
       [](const Sizes& n) { return prepare_ttt(kernels::ttt_mlp, mlp_inner_model(/*bias=*/true), n); },
       // k W1, h W2, G2 W2^T, q W1, a W2, k^T G1 and h^T G2; the lower halves of q k^T and a h^T and their products
       // with G1 and G2
       [](const Sizes& n) { return per_head(n, 56.0 * n.K * n.K + 10.0 * (n.C + 1) * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K + 1); }, [](const Sizes& n) { return per_head(n, n.K); },
       // the seven above, q D1 and a D2
       [](const Sizes& n) { return per_head(n, 72.0 * n.K * n.K); },
       [](const Sizes& n) { return per_head(n, 2.0 * n.K * (8 * n.K + 5)); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K * (8 * n.K + 5)); }},
      {kernels::linear_attention, [](const Sizes& n) { return prepare_recurrence(/*delta=*/false, n); },
       // k v^T and S^T q
       [](const Sizes& n) { return per_head(n, 4.0 * n.K * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K); }, [](const Sizes& n) { return per_head(n, n.K); },
       [](const Sizes& n) { return per_head(n, 4.0 * n.K * n.K); }, square, twice_square},
      {kernels::delta_rule, [](const Sizes& n) { return prepare_recurrence(/*delta=*/true, n); },
       // S^T k, k u^T and S^T q
       [](const Sizes& n) { return per_head(n, 6.0 * n.K * n.K); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K + 1); }, [](const Sizes& n) { return per_head(n, n.K); },
       [](const Sizes& n) { return per_head(n, 6.0 * n.K * n.K); }, square, twice_square},
      {kernels::feature_attention, prepare_features,
       // W k, W q, phi(k) v^T and S^T phi(q)
       [](const Sizes& n) { return per_head(n, 8.0 * n.K * n.M); },
       [](const Sizes& n) { return per_head(n, 3.0 * n.K); }, [](const Sizes& n) { return per_head(n, n.K); },
       [](const Sizes& n) { return per_head(n, 8.0 * n.K * n.M); },
       [](const Sizes& n) { return per_head(n, 1.0 * n.K * n.M); },
       [](const Sizes& n) { return per_head(n, 2.0 * n.K * n.M); }},
      {kernels::selective_scan, prepare_scan,
       // of each number of the state exp(dt A), counted as two, its product with h, dt u B, their sum and C . h
       [](const Sizes& n) { return per_head(n, 7.0 * n.K * n.N); },
       [](const Sizes& n) { return per_head(n, 2.0 * n.K) + 2 * n.N; }, [](const Sizes& n) { return per_head(n, n.K); },
       [](const Sizes& n) { return per_head(n, 7.0 * n.K * n.N); },
       [](const Sizes& n) { return per_head(n, 1.0 * n.K * n.N); },
       [](const Sizes& n) { return per_head(n, 2.0 * n.K * n.N); }},
      {kernels::vq_attention, prepare_vq,
       // k c^T of the search; q k^T, p r^T, q c^T and the weighted sums of values and means
       [](const Sizes& n) {
         return per_head(n, 2.0 * n.K * (3 * n.codes + 2 * seen(n) + std::min(seen(n), n.window + 1.0)));
       },
       [](const Sizes& n) { return per_head(n, 4.0 * n.K); }, [](const Sizes& n) { return per_head(n, n.K); }, nullptr,
       nullptr, nullptr},
  };
  return all;
}

OperationPass step_pass(const Benched& bench, Sizes sizes) {
  constexpr double kUncached = 256 << 20;  // bytes of all states
  sizes.B = sizes.sessions, sizes.T = 1;
  const auto turns = static_cast<int64_t>(std::ceil(kUncached / (4 * bench.state(sizes)))) / sizes.sessions + 1;
  sizes.pool = turns * sizes.sessions;
  const std::string name = std::string(bench.operation.name) + " step";
  const auto step = [prepared = bench.prepare(sizes)] {
    const at::NoGradGuard no_grad;
    prepared.o();
  };
  const auto tokens = static_cast<double>(sizes.B);
  const double floats = bench.inputs(sizes) + bench.outputs(sizes) + bench.traffic(sizes);
  return {name, {name, step}, sizes.B, tokens * bench.step_flops(sizes), 4 * tokens * floats};
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
  const int64_t count = sizes.B * sizes.T;
  passes.push_back({name, {name, forward}, count, flops, bytes * (inputs + outputs)});
  passes.push_back({name + " both", {name + " both", both}, count, 3 * flops, bytes * (3 * inputs + 2 * outputs)});
  if (bench.step_flops) passes.push_back(step_pass(bench, sizes));
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
