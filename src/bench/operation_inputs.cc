#include "bench/operation_inputs.h"

#include <ATen/ATen.h>

#include <cmath>

#include "backbones/feed_forward.h"
#include "kernels/kernels.h"
#include "mixers/feature_attention.h"
#include "mixers/linear_recurrence.h"
#include "mixers/mamba.h"
#include "mixers/rms_norm.h"
#include "mixers/rwkv4.h"
#include "mixers/short_conv.h"
#include "mixers/ttt.h"
#include "mixers/vq_attention.h"
#include "objectives/token_loss.h"
#include "positions/rope.h"

namespace lineal {
namespace {

using Sizes = OperationSizes;

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

/// operation(in), whose result has a part `out`; of a pool's next rows where there is one.
template <class Input, class Output>
std::function<Tensor()> in_turns(const Sizes& n, Input in, std::function<Output(const Input&)> operation,
                                 Tensor Output::*out) {
  return [=, turns = std::make_shared<Turns>(n)]() mutable {
    in.rows = turns->next();
    return operation(in).*out;
  };
}

struct Spread {
  double scale = 1, offset = 0;
};

Tensor random(std::vector<Tensor>& leaves, at::IntArrayRef shape, Spread spread = {},
              at::ScalarType type = at::kFloat) {
  leaves.push_back((at::randn(shape) * spread.scale + spread.offset).to(type).requires_grad_());
  return leaves.back();
}

Tensor unit(const Tensor& x, at::ScalarType type) {
  return (x / x.norm(2, -1, /*keepdim=*/true)).to(type).requires_grad_();
}

std::vector<int64_t> heads(const Sizes& n) { return {n.B, n.T, n.H, n.K}; }
std::vector<int64_t> rows(const Sizes& n) { return {n.B, n.T, n.channels()}; }

Prepared prepare_ttt(const kernels::Operation<kernels::TTTOutput, kernels::TTTInput>& operation,
                     const std::shared_ptr<InnerModel>& model, const Sizes& n) {
  Prepared result;
  const auto K = static_cast<double>(n.K);
  kernels::TTTInput in;
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = random(result.leaves, heads(n), {}, n.type);
  in.eta = random(result.leaves, {n.B, n.T, n.H}, {0.1 / K, 0.5 / K});
  in.scale = random(result.leaves, {n.C}, {0.01, 0.2});
  in.gamma = random(result.leaves, {n.H, n.K}, {0.1, 1}), in.beta = random(result.leaves, {n.H, n.K}, {0.1});
  for (const auto& weight : model->weights(n.K)) {
    std::vector<int64_t> shape = weight.shape;
    shape.insert(shape.begin(), n.H);
    in.initial.push_back(random(result.leaves, shape, {0.02}));
    shape.insert(shape.begin(), n.states());
    in.W.push_back(in.initial.back().detach().expand(shape).contiguous());
    in.D.push_back(at::zeros(shape));
  }
  in.position = at::full({n.B}, n.pool > 0 ? n.C / 2 : 0, at::kLong);
  const auto reference = [=](const kernels::TTTInput& input) { return ttt_reference(*model, input, /*dual=*/true); };
  result.o = in_turns<kernels::TTTInput, kernels::TTTOutput>(
      n, in, [=, &operation](const kernels::TTTInput& input) { return kernels::use(operation, reference, input); },
      &kernels::TTTOutput::o);
  return result;
}

Prepared prepare_recurrence(bool delta, const Sizes& n) {
  constexpr int64_t kChunk = 64;
  Prepared result;
  kernels::RecurrenceInput in;
  in.q = random(result.leaves, heads(n), {1 / std::sqrt(static_cast<double>(n.K))}, n.type);
  in.k = unit(at::randn(heads(n)), n.type);
  result.leaves.push_back(in.k);
  in.v = random(result.leaves, heads(n), {}, n.type);
  if (delta) in.beta = random(result.leaves, {n.B, n.T, n.H}, {0.1, 0.5});
  in.S = at::zeros({n.states(), n.H, n.K, n.K});
  result.o = in_turns<kernels::RecurrenceInput, kernels::RecurrenceOutput>(
      n, in, [](const kernels::RecurrenceInput& input) { return linear_recurrence(input, kChunk); },
      &kernels::RecurrenceOutput::o);
  return result;
}

using FeatureFunction = std::function<kernels::FeatureAttentionOutput(const kernels::FeatureAttentionInput&)>;

Prepared prepare_features(const FeatureFunction& operation, const Sizes& n) {
  Prepared result;
  kernels::FeatureAttentionInput in{.map = "positive", .epsilon = 1e-6};
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = random(result.leaves, heads(n));
  in.projection = at::randn({Sizes::M, n.K});
  in.scale = std::pow(static_cast<double>(n.K), -0.25);
  in.S = at::zeros({n.states(), n.H, Sizes::M, n.K});
  in.peak = at::zeros({n.states(), n.H});
  in.fresh = at::zeros({n.B}, at::kBool);
  result.o = in_turns(n, in, operation, &kernels::FeatureAttentionOutput::o);
  return result;
}

Prepared prepare_norm(bool adds, const Sizes& n) {
  Prepared result;
  kernels::NormInput in{.eps = 1e-6, .narrow = n.type == at::kBFloat16};
  in.x = random(result.leaves, rows(n));
  if (adds) in.added = random(result.leaves, rows(n), {}, n.type);
  in.weight = random(result.leaves, {n.channels()}, {0.1, 1});
  result.o = [in] { return rms_norm(in).y; };
  return result;
}

}  // namespace

Prepared prepare_ttt_linear(const Sizes& n) {
  return prepare_ttt(kernels::ttt_linear, linear_inner_model(/*bias=*/true), n);
}

Prepared prepare_ttt_mlp(const Sizes& n) { return prepare_ttt(kernels::ttt_mlp, mlp_inner_model(/*bias=*/true), n); }

Prepared prepare_linear_attention(const Sizes& n) { return prepare_recurrence(/*delta=*/false, n); }

Prepared prepare_delta_rule(const Sizes& n) { return prepare_recurrence(/*delta=*/true, n); }

Prepared prepare_feature_attention(const Sizes& n) {
  constexpr int64_t kChunk = 64;
  return prepare_features([](const kernels::FeatureAttentionInput& input) { return feature_attention(input, kChunk); },
                          n);
}

Prepared prepare_feature_attention_in_documents(const Sizes& n) {
  return prepare_features(feature_attention_in_documents, n);
}

Prepared prepare_selective_scan(const Sizes& n) {
  constexpr int64_t kChunk = 32;
  Prepared result;
  kernels::ScanInput in;
  in.u = random(result.leaves, rows(n), {}, n.type);
  in.delta = random(result.leaves, rows(n), {0.001, 0.01}, n.type);
  in.A = random(result.leaves, {n.channels(), Sizes::N}, {0.1, -2});
  for (Tensor* x : {&in.B, &in.C}) *x = random(result.leaves, {n.B, n.T, 1, Sizes::N}, {}, n.type);
  in.h = at::zeros({n.states(), n.channels(), Sizes::N});
  const auto reference = [](const kernels::ScanInput& input) {
    return around_scan(input, [&](const Selective& core, const Tensor& h, const Segments& documents) {
      return selective_scan(core, h, kChunk, documents);
    });
  };
  result.o = in_turns<kernels::ScanInput, kernels::ScanOutput>(
      n, in,
      [reference](const kernels::ScanInput& input) { return kernels::use(kernels::selective_scan, reference, input); },
      &kernels::ScanOutput::y);
  return result;
}

Prepared prepare_wkv(const Sizes& n) {
  Prepared result;
  kernels::WkvInput in;
  for (Tensor* x : {&in.k, &in.v}) *x = random(result.leaves, rows(n));
  in.w = random(result.leaves, {n.channels()}, {0.1, -1}), in.u = random(result.leaves, {n.channels()}, {0.1});
  in.a = at::zeros({n.states(), n.channels()}), in.b = at::zeros_like(in.a);
  in.p = at::full_like(in.a, kernels::kWkvLeast);
  result.o = in_turns<kernels::WkvInput, kernels::WkvOutput>(n, in, wkv, &kernels::WkvOutput::y);
  return result;
}

Prepared prepare_short_conv(const Sizes& n) {
  Prepared result;
  kernels::ConvInput in{.silu = true};
  in.x = random(result.leaves, rows(n), {}, n.type);
  in.weight = random(result.leaves, {n.channels(), 1, Sizes::J}, {0.3});
  in.bias = random(result.leaves, {n.channels()}, {0.1});
  in.window = at::zeros({n.states(), Sizes::J - 1, n.channels()});
  result.o = in_turns<kernels::ConvInput, kernels::ConvOutput>(
      n, in,
      [](const kernels::ConvInput& input) { return kernels::use(kernels::short_conv, short_conv_reference, input); },
      &kernels::ConvOutput::y);
  return result;
}

Prepared prepare_nearest_code(const Sizes& n) {
  const Tensor k = at::randn(heads(n)), codebook = at::randn({n.H, n.codes, n.K});
  return {{}, [=] { return nearest_code(k, codebook); }};
}

Prepared prepare_vq_attention(const Sizes& n) {
  Prepared result;
  const double scale = std::pow(static_cast<double>(n.K), -0.25);
  kernels::VqInput in;
  in.r = random(result.leaves, {n.window + 1, n.H, n.K}, {scale});
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
  const Tensor k = random(result.leaves, heads(n), {scale});
  for (Tensor* x : {&in.q, &in.p}) *x = random(result.leaves, heads(n), {scale});
  in.v = random(result.leaves, heads(n));
  result.o = [=]() mutable {
    in.code = nearest_code(k.detach(), in.codebook);
    in.k = codewords(in.codebook, in.code) + (k - k.detach());
    return vq_attention(in).o;
  };
  return result;
}

Prepared prepare_rms_norm(const Sizes& n) { return prepare_norm(/*adds=*/false, n); }

Prepared prepare_add_rms_norm(const Sizes& n) { return prepare_norm(/*adds=*/true, n); }

Prepared prepare_rope(const Sizes& n) {
  constexpr double kBase = 10000;
  Prepared result;
  const Tensor x = random(result.leaves, heads(n), {}, n.type), position = at::arange(n.T, at::kLong);
  const RopeTable table = rope_table(position, n.K, kBase, RopePairs::halves, at::TensorOptions());
  const Tensor place = position.expand({n.B, n.T});
  result.o = [=] { return rope(x, place, table, RopePairs::halves); };
  return result;
}

Prepared prepare_swiglu(const Sizes& n) {
  Prepared result;
  const Tensor gate = random(result.leaves, rows(n), {}, n.type), up = random(result.leaves, rows(n), {}, n.type);
  result.o = [=] { return swiglu(gate, up); };
  return result;
}

Prepared prepare_token_loss(const Sizes& n) {
  Prepared result;
  kernels::TokenLossInput in;
  in.hidden = random(result.leaves, {n.tokens(), n.channels()}, {}, n.type);
  in.head = random(result.leaves, {n.vocabulary, n.channels()}, {0.02});
  in.targets = at::randint(n.vocabulary, {n.tokens()}, at::kLong);
  in.weights = at::full({n.tokens()}, 1 / static_cast<double>(n.tokens()));
  result.o = [in] { return token_loss(in); };
  return result;
}

}  // namespace lineal
