// The fused operations under their own names and letters for Python and TorchScript: after
// torch.ops.load_library("liblineal_ops.so") they are torch.ops.lineal.NAME, differentiable. What has no kernel is an
// error.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/kernels.h"

namespace lineal::kernels {
namespace {

using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;

template <class Result, class Input>
Result run(const Operation<Result, Input>& operation, const Input& input) {
  const auto none = [&](const Input&) -> Result {
    fail(operation.name, ": no fused kernel for this device, type and shape");
  };
  return use(operation, none, input);
}

constexpr const char* kTTT =
    "(Tensor q, Tensor k, Tensor v, Tensor eta, Tensor scale, Tensor[] initial, Tensor[] W, Tensor[] D, "
    "Tensor position, *, Tensor? gamma=None, Tensor? beta=None, Tensor? starts=None, bool residual=True) "
    "-> (Tensor o, Tensor[] W_after, Tensor[] D_after)";

template <const Operation<TTTOutput, TTTInput>& operation>
std::tuple<Tensor, Tensors, Tensors> ttt(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& eta,
                                         const Tensor& scale, at::TensorList initial, at::TensorList W,
                                         at::TensorList D, const Tensor& position, const Optional& gamma,
                                         const Optional& beta, const Optional& starts, bool residual) {
  if (W.empty() || initial.size() != W.size() || D.size() != W.size()) {
    fail(operation.name, ": initial, W and D have ", initial.size(), ", ", W.size(), " and ", D.size(),
         " tensors, expected the inner model's weights in each");
  }
  TTTOutput out = run(operation, {.q = q,
                                  .k = k,
                                  .v = v,
                                  .eta = eta,
                                  .scale = scale,
                                  .gamma = gamma.value_or(Tensor()),
                                  .beta = beta.value_or(Tensor()),
                                  .position = position,
                                  .starts = starts.value_or(Tensor()),
                                  .initial = initial.vec(),
                                  .W = W.vec(),
                                  .D = D.vec(),
                                  .residual = residual});
  return {std::move(out.o), std::move(out.W), std::move(out.D)};
}

std::tuple<Tensor, Tensor> linear_attention_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& S,
                                               const Optional& g, const Optional& starts) {
  RecurrenceOutput out =
      run(linear_attention,
          {.q = q, .k = k, .v = v, .g = g.value_or(Tensor()), .S = S, .starts = starts.value_or(Tensor())});
  return {std::move(out.o), std::move(out.S)};
}

std::tuple<Tensor, Tensor> delta_rule_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                         const Tensor& S, const Optional& g, const Optional& starts) {
  RecurrenceOutput out = run(
      delta_rule,
      {.q = q, .k = k, .v = v, .beta = beta, .g = g.value_or(Tensor()), .S = S, .starts = starts.value_or(Tensor())});
  return {std::move(out.o), std::move(out.S)};
}

std::tuple<Tensor, Tensor, Optional> feature_attention_op(const Tensor& q, const Tensor& k, const Tensor& v,
                                                          const Tensor& projection, const Tensor& S,
                                                          const Tensor& fresh, const Optional& peak,
                                                          const Optional& starts, std::string_view map, double scale,
                                                          double epsilon) {
  FeatureAttentionOutput out = run(feature_attention, {.q = q,
                                                       .k = k,
                                                       .v = v,
                                                       .projection = projection,
                                                       .map = std::string(map),
                                                       .scale = scale,
                                                       .epsilon = epsilon,
                                                       .S = S,
                                                       .peak = peak.value_or(Tensor()),
                                                       .fresh = fresh,
                                                       .starts = starts.value_or(Tensor())});
  return {std::move(out.o), std::move(out.S), out.peak.defined() ? Optional(out.peak) : std::nullopt};
}

std::tuple<Tensor, Tensor> selective_scan_op(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                             const Tensor& C, const Tensor& h, const Optional& D, const Optional& z,
                                             const Optional& bias, const Optional& starts, bool softplus) {
  ScanOutput out = run(selective_scan, {.u = u,
                                        .delta = delta,
                                        .A = A,
                                        .B = B,
                                        .C = C,
                                        .D = D.value_or(Tensor()),
                                        .z = z.value_or(Tensor()),
                                        .bias = bias.value_or(Tensor()),
                                        .softplus = softplus,
                                        .h = h,
                                        .starts = starts.value_or(Tensor())});
  return {std::move(out.y), std::move(out.h)};
}

TORCH_LIBRARY(lineal, library) {
  library.def(text("ttt_linear", kTTT).c_str(), ttt<ttt_linear>);
  library.def(text("ttt_mlp", kTTT).c_str(), ttt<ttt_mlp>);
  library.def(
      "linear_attention(Tensor q, Tensor k, Tensor v, Tensor S, *, Tensor? g=None, Tensor? starts=None) "
      "-> (Tensor o, Tensor S_after)",
      linear_attention_op);
  library.def(
      "delta_rule(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor S, *, Tensor? g=None, Tensor? starts=None) "
      "-> (Tensor o, Tensor S_after)",
      delta_rule_op);
  library.def(
      "feature_attention(Tensor q, Tensor k, Tensor v, Tensor projection, Tensor S, Tensor fresh, *, Tensor? "
      "peak=None, "
      "Tensor? starts=None, str map='positive', float scale=1.0, float epsilon=1e-6) "
      "-> (Tensor o, Tensor S_after, Tensor? peak_after)",
      feature_attention_op);
  library.def(
      "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor h, *, Tensor? D=None, "
      "Tensor? z=None, Tensor? bias=None, Tensor? starts=None, bool softplus=False) -> (Tensor y, Tensor h_after)",
      selective_scan_op);
}

}  // namespace
}  // namespace lineal::kernels
