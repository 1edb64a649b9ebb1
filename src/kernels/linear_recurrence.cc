// The linear recurrences as one differentiable operation: checks, memory and autograd around the kernels.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <map>

#include "core/dims.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/cpu/linear_recurrence.h"
#include "kernels/cpu/scratch.h"
#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Inputs in the order autograd sees them, and what is saved beside them; the absent are empty on their way through it.
enum { kQ, kK, kV, kBeta, kG, kS, kPeak, kInputs, kErrors = kInputs, kStates, kPeaks };

const float* data(const Tensor& x) { return x.defined() && x.numel() > 0 ? x.const_data_ptr<float>() : nullptr; }
float* mutable_data(const Tensor& x) { return x.defined() && x.numel() > 0 ? x.mutable_data_ptr<float>() : nullptr; }
cpu::Source source(const Tensor& x) { return {x.const_data_ptr(), x.scalar_type() == at::kBFloat16}; }
cpu::Target target(const Tensor& x) { return {x.mutable_data_ptr(), x.scalar_type() == at::kBFloat16}; }

/// The call with the chunks of every row: full ones from its start and from that of each document.
cpu::RecurrenceCall cut(cpu::RecurrenceCall call, const Tensor& starts) {
  const Tensor rows = starts.defined() ? starts.contiguous() : Tensor();
  int64_t documents = 0;
  for (int64_t b = 0; b < call.B; ++b) {
    const bool* start = rows.defined() ? rows.const_data_ptr<bool>() + b * call.T : nullptr;
    call.first_document.push_back(documents);
    for (int64_t t = 0; t < call.T;) {
      documents += t == 0 || (start && start[t]);
      int64_t end = t + 1;
      while (end < call.T && end - t < cpu::kChunk && !(start && start[end])) ++end;
      call.chunks.push_back({t, end - t, start && start[t]});
      t = end;
    }
    call.row_end.push_back(static_cast<int64_t>(call.chunks.size()));
  }
  call.first_document.push_back(documents);
  return call;
}

void point(cpu::RecurrenceCall& call, const variable_list& in) {
  call.q = source(in[kQ]), call.k = source(in[kK]), call.v = source(in[kV]);
  call.beta = data(in[kBeta]), call.g = data(in[kG]), call.S = data(in[kS]);
  if (call.features) call.features->before = data(in[kPeak]);
}

/// What a call points to beside autograd's inputs.
struct Projection {
  Tensor columns, rows, fresh;
};

/// The call that forward made, kept for backward.
struct Saved : torch::CustomClassHolder {
  const char* who;
  cpu::RecurrenceCall call;
  Projection projection;
};

class LinearRecurrence : public torch::autograd::Function<LinearRecurrence> {
 public:
  /// o, S and the largest exponent.
  static variable_list forward(AutogradContext* context, const char* who, at::TensorList inputs,
                               const cpu::RecurrenceCall& pieces, const Projection& projection, bool differentiable) {
    variable_list in = inputs.vec();
    cpu::RecurrenceCall call = pieces;
    point(call, in);
    const Tensor o = unfilled_like(in[kV]), S = at::empty_like(in[kS]);
    const Tensor peak = at::empty_like(in[kPeak]);
    if (call.features) call.features->after = mutable_data(peak);
    if (differentiable) {
      const auto saves = [&](at::IntArrayRef sizes) { in.push_back(unfilled(sizes, in[kS].options())); };
      saves(call.beta ? in[kV].sizes() : at::IntArrayRef{0});
      saves({call.states_saved(), call.K, call.V});
      const int64_t peaks = call.causal ? call.B * call.T * call.H : call.states_saved();
      saves({peak.numel() > 0 ? peaks : 0});
      keep(call, in);
      auto saved = c10::make_intrusive<Saved>();
      saved->who = who, saved->call = call, saved->projection = projection;
      context->saved_data["call"] = c10::IValue::make_capsule(saved);
      context->save_for_backward(in);
      context->set_materialize_grads(true);
    }
    const auto run = call.causal ? cpu::linear_recurrence_forward : cpu::feature_documents_forward;
    run(call, {target(o), mutable_data(S)});
    return {o, S, peak};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto holder = context->saved_data["call"].toCapsule();
    const Saved& made = static_cast<const Saved&>(*holder);
    check_backward(made.who, gradients);
    const variable_list saved = context->get_saved_variables();
    cpu::RecurrenceCall call = made.call;
    point(call, saved);
    keep(call, saved);
    const Tensor o = gradients[0].contiguous(), S_after = gradients[1].contiguous(), peak = gradients[2].contiguous();
    variable_list d(kInputs);
    for (int i = 0; i < kInputs; ++i) d[i] = unfilled_like(saved[i]);
    const auto run = call.causal ? cpu::linear_recurrence_backward : cpu::feature_documents_backward;
    run(call, {source(o), data(S_after), target(d[kQ]), target(d[kK]), target(d[kV]), mutable_data(d[kBeta]),
               mutable_data(d[kG]), mutable_data(d[kS]), data(peak), mutable_data(d[kPeak])});
    d.insert(d.begin(), Tensor());   // of the name
    d.insert(d.end(), 3, Tensor());  // of the pieces, the projection and the flag
    return d;
  }

 private:
  static void keep(cpu::RecurrenceCall& call, const variable_list& in) {
    call.errors = mutable_data(in[kErrors]), call.states = mutable_data(in[kStates]);
    if (call.features) call.features->peaks = mutable_data(in[kPeaks]);
  }
};

/// The call of the input's sizes, which are checked.
cpu::RecurrenceCall sized(const char* who, const RecurrenceInput& in) {
  Dims dims(who);
  dims.check(in.q, "BTHK", "q");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHV", "v");
  if (in.beta.defined()) dims.check(in.beta, "BTH", "beta");
  const bool channels = in.g.defined() && in.g.dim() == 4;
  if (in.g.defined()) dims.check(in.g, channels ? "BTHK" : "BTH", "g");
  dims.check(in.S, in.rows ? "PHKV" : "BHKV", "S");
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  cpu::RecurrenceCall call{.B = dims['B'], .T = dims['T'], .H = dims['H'], .K = dims['K'], .V = dims['V']};
  if (in.g.defined()) call.decay = channels ? cpu::Decay::channel : cpu::Decay::token;
  return call;
}

/// q, k and v of one type, float32 or bfloat16; the rest float32.
bool has_kernel(const RecurrenceInput& in) {
  const auto type = in.q.scalar_type();
  if (type != at::kFloat && type != at::kBFloat16) return false;
  for (const Tensor* x : {&in.q, &in.k, &in.v}) {
    if (!x->is_cpu() || x->scalar_type() != type) return false;
  }
  for (const Tensor* x : {&in.beta, &in.g, &in.S}) {
    if (x->defined() && !(x->is_cpu() && x->scalar_type() == at::kFloat)) return false;
  }
  return in.q.numel() > 0 && in.v.numel() > 0;
}

/// One token without gradients, in the rows of a pool or into a new state.
RecurrenceOutput step(cpu::RecurrenceCall& call, const variable_list& inputs, const RecurrenceInput& in) {
  point(call, inputs);
  const Tensor starts = in.starts.defined() ? in.starts.contiguous() : Tensor();
  const Tensor o = at::empty_like(inputs[kV]), S = in.rows ? in.S : at::empty_like(inputs[kS]);
  const bool* restart = starts.defined() ? starts.const_data_ptr<bool>() : nullptr;
  const cpu::StatePart moved = part(inputs[kS], S, in.rows);
  record("lineal::linear_recurrence_step", [&] { cpu::linear_recurrence_step(call, restart, moved, target(o)); });
  return {o, S};
}

/// The inputs as kernels take them, and whether gradients are asked for.
template <class Input>
bool prepare(const char* who, const Input& in, const cpu::RecurrenceCall& call, variable_list& inputs) {
  bool differentiable = false;
  for (Tensor& x : inputs) {
    if (!x.defined()) continue;
    differentiable |= x.requires_grad();
    if (!(in.rows && x.is_same(in.S))) x = x.contiguous();
  }
  differentiable &= at::GradMode::is_enabled();
  check_type(who, in.starts, at::kBool, "starts");
  check_step(who, in, in.S, call.B, call.T, differentiable);
  return differentiable;
}

variable_list run(const char* who, cpu::RecurrenceCall call, variable_list& inputs, const Tensor& starts,
                  const Projection& projection, bool differentiable) {
  for (Tensor& x : inputs) {
    if (!x.defined()) x = at::empty({0}, at::kFloat);
  }
  return LinearRecurrence::apply(who, at::TensorList(inputs), cut(std::move(call), starts), projection, differentiable);
}

std::optional<RecurrenceOutput> fused(const char* who, const RecurrenceInput& in) {
  cpu::RecurrenceCall call = sized(who, in);
  if (!has_kernel(in) || (in.rows && !has_rows(in.S))) return {};
  variable_list inputs = {in.q, in.k, in.v, in.beta, in.g, in.S, {}};
  const bool differentiable = prepare(who, in, call, inputs);
  if (call.T == 1 && !differentiable) return step(call, inputs, in);
  const auto out = run(who, std::move(call), inputs, in.starts, {}, differentiable);
  return RecurrenceOutput{out[0], out[1]};
}

const std::map<std::string, cpu::FeatureCall::Map>& maps() {
  using Features = cpu::FeatureCall;
  static const std::map<std::string, Features::Map> all = {
      {"positive", Features::positive}, {"hyperbolic", Features::hyperbolic},
      {"trig", Features::trig},         {"relu", Features::relu},
      {"sigmoid", Features::sigmoid},   {"exp", Features::exp},
      {"abs", Features::abs},           {"cos", Features::cos},
      {"tanh", Features::tanh},         {"identity", Features::identity}};
  return all;
}

std::optional<cpu::FeatureCall::Map> feature_map(const std::string& name) {
  const auto found = maps().find(name);
  return found == maps().end() ? std::nullopt : std::optional(found->second);
}

/// The call of the input's sizes, which are checked, with its features.
cpu::RecurrenceCall sized(const char* who, const FeatureAttentionInput& in, cpu::FeatureCall::Map map) {
  Dims dims(who);
  dims.check(in.q, "BTHK", "q");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHV", "v");
  dims.check(in.projection, "MK", "projection");
  if (dims['M'] == 0) fail(who, ": projection is ", in.projection.sizes(), ", expected at least one feature");
  dims.check(in.fresh, "B", "fresh");
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  cpu::FeatureCall f{.map = map, .K = dims['K'], .M = dims['M'], .epsilon = static_cast<float>(in.epsilon)};
  const bool two = map == cpu::FeatureCall::hyperbolic || map == cpu::FeatureCall::trig;
  const double M = static_cast<double>(f.M);
  if (f.is_softmax()) f.scale = static_cast<float>(1 / std::sqrt(map == cpu::FeatureCall::hyperbolic ? 2 * M : M));
  f.half = static_cast<float>(0.5 * in.scale * in.scale);
  cpu::RecurrenceCall call{.B = dims['B'], .T = dims['T'], .H = dims['H'], .K = two ? 2 * f.M : f.M, .V = dims['V']};
  const int64_t states = in.rows ? in.rows->capacity() : call.B;
  const auto expect = [&](const Tensor& x, std::vector<int64_t> shape, const char* name) {
    if (!x.defined()) fail(who, ": no ", name, ", expected ", at::IntArrayRef(shape), " for these features");
    if (x.sizes() != shape) fail(who, ": ", name, " is ", x.sizes(), ", expected ", at::IntArrayRef(shape));
  };
  expect(in.S, {states, call.H, call.K, call.V}, "S");
  if (f.is_softmax() || in.peak.defined()) expect(in.peak, {states, call.H}, "peak");
  call.decay = f.is_softmax() ? cpu::Decay::token : cpu::Decay::none;
  call.features = f;
  return call;
}

/// One token without gradients: its features, then the recurrence's step.
FeatureAttentionOutput step(cpu::RecurrenceCall& call, variable_list& inputs, const FeatureAttentionInput& in) {
  const Tensor starts = in.starts.defined() ? in.starts.contiguous() : Tensor();
  Tensor peak;
  if (in.peak.defined()) {
    if (in.rows) inputs[kPeak] = in.peak.index_select(0, in.rows->index());
    peak = at::empty_like(inputs[kPeak]);
    call.features->after = mutable_data(peak);
  }
  point(call, inputs);
  const auto options = in.S.options();
  const Tensor phi_q = at::empty({call.B, 1, call.H, call.K}, options), phi_k = at::empty_like(phi_q);
  const Tensor g = peak.defined() ? at::empty({call.B, 1, call.H}, options) : Tensor();
  record("lineal::features_step", [&] {
    cpu::features_step(call, starts.defined() ? starts.const_data_ptr<bool>() : nullptr, mutable_data(phi_q),
                       mutable_data(phi_k), mutable_data(g));
  });
  call.features.reset();
  const RecurrenceInput recurrence{
      .q = phi_q, .k = phi_k, .v = inputs[kV], .g = g, .S = in.S, .starts = in.starts, .rows = in.rows};
  const auto out = step(call, {phi_q, phi_k, inputs[kV], {}, g, inputs[kS], {}}, recurrence);
  if (in.rows && peak.defined()) {
    in.peak.index_copy_(0, in.rows->index(), peak);
    peak = in.peak;
  }
  return {out.o, out.S, peak};
}

std::optional<FeatureAttentionOutput> fused(const char* who, bool causal, const FeatureAttentionInput& in) {
  const auto map = feature_map(in.map);
  if (!map || !has_kernel({.q = in.q, .k = in.k, .v = in.v, .S = in.S}) || in.q.scalar_type() != at::kFloat ||
      (in.peak.defined() && !(in.peak.is_cpu() && in.peak.scalar_type() == at::kFloat)) ||
      in.projection.requires_grad() || (in.rows && !(causal && has_rows(in.S)))) {
    return {};
  }
  cpu::RecurrenceCall call = sized(who, in, *map);
  call.causal = causal;
  check_type(who, in.fresh, at::kBool, "fresh");
  const Tensor scaled = in.scale * in.projection.to(at::kFloat);
  const auto wide = [](const Tensor& x) {
    return at::constant_pad_nd(x, {0, cpu::padded(x.size(1)) - x.size(1)}).contiguous();
  };
  const Projection projection{wide(scaled.t()), wide(scaled), in.fresh.contiguous()};
  call.features->columns = data(projection.columns), call.features->rows = data(projection.rows);
  call.features->fresh = projection.fresh.const_data_ptr<bool>();
  variable_list inputs = {in.q, in.k, in.v, {}, {}, in.S, in.peak};
  const bool differentiable = prepare(who, in, call, inputs);
  if (causal && call.T == 1 && !differentiable) return step(call, inputs, in);
  const auto out = run(who, std::move(call), inputs, in.starts, projection, differentiable);
  return FeatureAttentionOutput{out[0], out[1], in.peak.defined() ? out[2] : Tensor()};
}

template <bool causal>
std::optional<FeatureAttentionOutput> fused_features(const FeatureAttentionInput& in) {
  return fused((causal ? feature_attention : feature_attention_in_documents).name, causal, in);
}

}  // namespace

const std::vector<std::string>& feature_maps() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& [name, map] : maps()) all.push_back(name);
    return all;
  }();
  return names;
}

const Operation<RecurrenceOutput, RecurrenceInput> linear_attention("linear_attention", [](const RecurrenceInput& in) {
  return fused("linear_attention", in);
});
const Operation<RecurrenceOutput, RecurrenceInput> delta_rule("delta_rule", [](const RecurrenceInput& in) {
  return fused("delta_rule", in);
});

const Operation<FeatureAttentionOutput, FeatureAttentionInput> feature_attention("feature_attention",
                                                                                 fused_features<true>);
const Operation<FeatureAttentionOutput, FeatureAttentionInput> feature_attention_in_documents(
    "feature_attention_in_documents", fused_features<false>);

}  // namespace lineal::kernels
