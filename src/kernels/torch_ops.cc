// The fused operations under their own names and letters for Python and TorchScript: after
// torch.ops.load_library("liblineal_ops.so") they are torch.ops.lineal.NAME. What has no kernel is an error.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/kernels.h"
#include "kernels/torch_library.h"
#include "kernels/vq_attention.h"
#include "kernels/wkv.h"

namespace lineal::kernels {
namespace {

using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;

template <class Result, class... Inputs>
Result run(const Operation<Result, Inputs...>& operation, const std::type_identity_t<Inputs>&... inputs) {
  if (chosen() != Choice::reference) {
    if (std::optional<Result> result = operation.fused_form(inputs...)) {
      ++operation.fused;
      return *std::move(result);
    }
  }
  throw NoKernel();
}

Tensor or_none(const Optional& x) { return x.value_or(Tensor()); }
Optional optional(const Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; }

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
                                  .gamma = or_none(gamma),
                                  .beta = or_none(beta),
                                  .position = position,
                                  .starts = or_none(starts),
                                  .initial = initial.vec(),
                                  .W = W.vec(),
                                  .D = D.vec(),
                                  .residual = residual});
  return {std::move(out.o), std::move(out.W), std::move(out.D)};
}

std::tuple<Tensor, Tensor> linear_attention_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& S,
                                               const Optional& g, const Optional& starts) {
  RecurrenceOutput out =
      run(linear_attention, {.q = q, .k = k, .v = v, .g = or_none(g), .S = S, .starts = or_none(starts)});
  return {std::move(out.o), std::move(out.S)};
}

std::tuple<Tensor, Tensor> delta_rule_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                         const Tensor& S, const Optional& g, const Optional& starts) {
  RecurrenceOutput out =
      run(delta_rule, {.q = q, .k = k, .v = v, .beta = beta, .g = or_none(g), .S = S, .starts = or_none(starts)});
  return {std::move(out.o), std::move(out.S)};
}

template <const Operation<FeatureAttentionOutput, FeatureAttentionInput>& operation>
std::tuple<Tensor, Tensor, Optional> features(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& projection, const Tensor& S, const Tensor& fresh,
                                              const Optional& peak, const Optional& starts, std::string_view map,
                                              double scale, double epsilon) {
  const std::vector<std::string>& known = feature_maps();
  if (std::find(known.begin(), known.end(), map) == known.end()) fail_unknown(operation.name, "map", map, known);
  FeatureAttentionOutput out = run(operation, {.q = q,
                                               .k = k,
                                               .v = v,
                                               .projection = projection,
                                               .map = std::string(map),
                                               .scale = scale,
                                               .epsilon = epsilon,
                                               .S = S,
                                               .peak = or_none(peak),
                                               .fresh = fresh,
                                               .starts = or_none(starts)});
  return {std::move(out.o), std::move(out.S), optional(out.peak)};
}

std::tuple<Tensor, Tensor> selective_scan_op(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                             const Tensor& C, const Tensor& h, const Optional& D, const Optional& z,
                                             const Optional& bias, const Optional& starts, bool softplus) {
  ScanOutput out = run(selective_scan, {.u = u,
                                        .delta = delta,
                                        .A = A,
                                        .B = B,
                                        .C = C,
                                        .D = or_none(D),
                                        .z = or_none(z),
                                        .bias = or_none(bias),
                                        .softplus = softplus,
                                        .h = h,
                                        .starts = or_none(starts)});
  return {std::move(out.y), std::move(out.h)};
}

std::tuple<Tensor, Tensor> short_conv_op(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                         const Tensor& window, const Optional& starts, bool silu) {
  ConvOutput out = run(
      short_conv, {.x = x, .weight = weight, .bias = bias, .window = window, .starts = or_none(starts), .silu = silu});
  return {std::move(out.y), std::move(out.window)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> wkv_op(const Tensor& k, const Tensor& v, const Tensor& w, const Tensor& u,
                                                  const Tensor& a, const Tensor& b, const Tensor& p,
                                                  const Optional& starts) {
  WkvOutput out = run(wkv, {.k = k, .v = v, .w = w, .u = u, .a = a, .b = b, .p = p, .starts = or_none(starts)});
  return {std::move(out.y), std::move(out.a), std::move(out.b), std::move(out.p)};
}

Tensor nearest_code_op(const Tensor& k, const Tensor& codebook) { return run(nearest_code, k, codebook); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Optional, Optional> vq_attention_op(
    const Tensor& q, const Tensor& p, const Tensor& k, const Tensor& v, const Tensor& code, const Tensor& codebook,
    const Tensor& r, int64_t block, const Tensor& position, const Tensor& past_k, const Tensor& past_v,
    const Tensor& past_code, const Optional& count, const Optional& mean, const Optional& starts) {
  if (count.has_value() != mean.has_value()) fail("vq_attention: count and mean go together, expected both or none");
  VqOutput out = run(vq_attention, {.q = q,
                                    .p = p,
                                    .k = k,
                                    .v = v,
                                    .code = code,
                                    .codebook = codebook,
                                    .r = r,
                                    .block = block,
                                    .position = position,
                                    .starts = or_none(starts),
                                    .past_k = past_k,
                                    .past_v = past_v,
                                    .past_code = past_code,
                                    .count = or_none(count),
                                    .mean = or_none(mean)});
  return {std::move(out.o),         std::move(out.past_k), std::move(out.past_v),
          std::move(out.past_code), optional(out.count),   optional(out.mean)};
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps, bool narrow) {
  return run(rms_norm, {.x = x, .added = {}, .weight = weight, .eps = eps, .narrow = narrow}).y;
}

std::tuple<Tensor, Tensor> add_rms_norm_op(const Tensor& x, const Tensor& added, const Tensor& weight, double eps,
                                           bool narrow) {
  NormOutput out = run(rms_norm, {.x = x, .added = added, .weight = weight, .eps = eps, .narrow = narrow});
  return {std::move(out.y), std::move(out.sum)};
}

Tensor rope_op(const Tensor& x, const Tensor& c, const Tensor& s, const Tensor& place, bool interleaved) {
  return run(rope, {.x = x, .c = c, .s = s, .place = place, .interleaved = interleaved});
}

Tensor swiglu_op(const Tensor& gate, const Tensor& up) { return run(swiglu, gate, up); }

Tensor token_loss_op(const Tensor& hidden, const Tensor& head, const Tensor& targets, const Tensor& weights) {
  return run(token_loss, {.hidden = hidden, .head = head, .targets = targets, .weights = weights});
}

Tensor rms_norm_meta(const Tensor& x, const Tensor&, double, bool narrow) {
  return at::empty_symint(x.sym_sizes(), x.options().dtype(narrow ? at::kBFloat16 : at::kFloat));
}
std::tuple<Tensor, Tensor> add_rms_norm_meta(const Tensor& x, const Tensor&, const Tensor& weight, double eps,
                                             bool narrow) {
  return {rms_norm_meta(x, weight, eps, narrow), fresh_like(x)};
}
Tensor nearest_code_meta(const Tensor& k, const Tensor&) {
  return at::empty_symint(k.sym_sizes().slice(0, 3), k.options().dtype(at::kLong));
}
Tensor token_loss_meta(const Tensor& hidden, const Tensor&, const Tensor&, const Tensor&) {
  return at::empty({}, hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
}

// A fragment: a second TORCH_LIBRARY, of liblineal_ops.so beside the Python package, ends the process. The first of
// them registers the operations.
TORCH_LIBRARY_FRAGMENT(lineal, library) {
  if (c10::Dispatcher::singleton().findSchema({"lineal::ttt_linear", ""})) return;
  const std::string of_ttt =
      "Tensor q, Tensor k, Tensor v, Tensor eta, Tensor scale, Tensor[] initial, Tensor[] W, Tensor[] D, "
      "Tensor position, *, Tensor? gamma=None, Tensor? beta=None, Tensor? starts=None, bool residual=True";
  const Signature ttt_signature = {
      .differentiable = {"q", "k", "v", "eta", "scale", "initial", "W", "D", "gamma", "beta"},
      .like = {"q", "W", "D"},
      .narrow = {"q", "k", "v"}};
  const std::string ttt_results = "(Tensor o, Tensor[] W_after, Tensor[] D_after)";
  add<ttt<ttt_linear>>(library, "ttt_linear", of_ttt, ttt_results, ttt_signature);
  add<ttt<ttt_mlp>>(library, "ttt_mlp", of_ttt, ttt_results, ttt_signature);

  add<linear_attention_op>(
      library, "linear_attention", "Tensor q, Tensor k, Tensor v, Tensor S, *, Tensor? g=None, Tensor? starts=None",
      "(Tensor o, Tensor S_after)",
      {.differentiable = {"q", "k", "v", "S", "g"}, .like = {"v", "S"}, .narrow = {"q", "k", "v"}});
  add<delta_rule_op>(
      library, "delta_rule",
      "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor S, *, Tensor? g=None, Tensor? starts=None",
      "(Tensor o, Tensor S_after)",
      {.differentiable = {"q", "k", "v", "beta", "S", "g"}, .like = {"v", "S"}, .narrow = {"q", "k", "v"}});

  const std::string of_features =
      "Tensor q, Tensor k, Tensor v, Tensor projection, Tensor S, Tensor fresh, *, Tensor? peak=None, "
      "Tensor? starts=None, str map='positive', float scale=1.0, float epsilon=1e-6";
  const Signature features_signature = {.differentiable = {"q", "k", "v", "S", "peak"}, .like = {"v", "S", "peak"}};
  const std::string features_results = "(Tensor o, Tensor S_after, Tensor? peak_after)";
  add<features<feature_attention>>(library, "feature_attention", of_features, features_results, features_signature);
  add<features<feature_attention_in_documents>>(library, "feature_attention_in_documents", of_features,
                                                features_results, features_signature);

  add<selective_scan_op>(
      library, "selective_scan",
      "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor h, *, Tensor? D=None, Tensor? z=None, "
      "Tensor? bias=None, Tensor? starts=None, bool softplus=False",
      "(Tensor y, Tensor h_after)",
      {.differentiable = {"u", "delta", "A", "B", "C", "h", "D", "z", "bias"},
       .like = {"u", "h"},
       .narrow = {"u", "delta", "B", "C", "z"}});
  add<short_conv_op>(library, "short_conv",
                     "Tensor x, Tensor weight, Tensor bias, Tensor window, *, Tensor? starts=None, bool silu=False",
                     "(Tensor y, Tensor window_after)",
                     {.differentiable = {"x", "weight", "bias", "window"}, .like = {"x", "window"}, .narrow = {"x"}});

  add<wkv_op>(library, "wkv",
              "Tensor k, Tensor v, Tensor w, Tensor u, Tensor a, Tensor b, Tensor p, *, Tensor? starts=None",
              "(Tensor y, Tensor a_after, Tensor b_after, Tensor p_after)",
              {.differentiable = {"k", "v", "w", "u", "a", "b", "p"}, .like = {"k", "a", "b", "p"}});
  add<nearest_code_op>(library, "nearest_code", "Tensor k, Tensor codebook", "Tensor", {},
                       torch::CppFunction(nearest_code_meta));
  add<vq_attention_op>(
      library, "vq_attention",
      "Tensor q, Tensor p, Tensor k, Tensor v, Tensor code, Tensor codebook, Tensor r, int block, Tensor position, "
      "Tensor past_k, Tensor past_v, Tensor past_code, *, Tensor? count=None, Tensor? mean=None, Tensor? starts=None",
      "(Tensor o, Tensor past_k_after, Tensor past_v_after, Tensor past_code_after, Tensor? count_after, "
      "Tensor? mean_after)",
      {.differentiable = {"q", "p", "k", "v", "r", "past_k", "past_v", "mean"},
       .like = {"v", "past_k", "past_v", "past_code", "count", "mean"}});

  add<rms_norm_op>(library, "rms_norm", "Tensor x, Tensor weight, float eps=1e-6, bool narrow=False", "Tensor",
                   {.differentiable = {"x", "weight"}}, torch::CppFunction(rms_norm_meta));
  add<add_rms_norm_op>(library, "add_rms_norm",
                       "Tensor x, Tensor added, Tensor weight, float eps=1e-6, bool narrow=False",
                       "(Tensor y, Tensor sum)", {.differentiable = {"x", "added", "weight"}, .narrow = {"added"}},
                       torch::CppFunction(add_rms_norm_meta));
  add<rope_op>(library, "rope", "Tensor x, Tensor c, Tensor s, Tensor place, *, bool interleaved=False", "Tensor",
               {.differentiable = {"x"}, .like = {"x"}, .narrow = {"x"}});
  add<swiglu_op>(library, "swiglu", "Tensor gate, Tensor up", "Tensor",
                 {.differentiable = {"gate", "up"}, .like = {"gate"}, .narrow = {"gate", "up"}});
  add<token_loss_op>(library, "token_loss", "Tensor hidden, Tensor head, Tensor targets, Tensor weights", "Tensor",
                     {.differentiable = {"hidden", "head"}, .any_type = true}, torch::CppFunction(token_loss_meta));
}

}  // namespace
}  // namespace lineal::kernels
