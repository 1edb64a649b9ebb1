// The linear recurrences as one differentiable operation: checks, memory and autograd around the kernels.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/cpu/linear_recurrence.h"
#include "kernels/filled.h"
#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "kernels/record.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Inputs in the order autograd sees them, and what is saved beside them; the absent are empty on their way through it.
enum { kQ, kK, kV, kBeta, kG, kS, kInputs, kErrors = kInputs, kStates };

const float* data(const Tensor& x) { return x.defined() && x.numel() > 0 ? x.const_data_ptr<float>() : nullptr; }
float* mutable_data(const Tensor& x) { return x.defined() && x.numel() > 0 ? x.mutable_data_ptr<float>() : nullptr; }
cpu::Source source(const Tensor& x) { return {x.const_data_ptr(), x.scalar_type() == at::kBFloat16}; }
cpu::Target target(const Tensor& x) { return {x.mutable_data_ptr(), x.scalar_type() == at::kBFloat16}; }

/// The call with the chunks of every row: full ones from its start and from that of each document.
cpu::RecurrenceCall cut(cpu::RecurrenceCall call, const Tensor& starts) {
  const Tensor rows = starts.defined() ? starts.contiguous() : Tensor();
  for (int64_t b = 0; b < call.B; ++b) {
    const bool* start = rows.defined() ? rows.const_data_ptr<bool>() + b * call.T : nullptr;
    for (int64_t t = 0; t < call.T;) {
      int64_t end = t + 1;
      while (end < call.T && end - t < cpu::kChunk && !(start && start[end])) ++end;
      call.chunks.push_back({t, end - t, start && start[t]});
      t = end;
    }
    call.row_end.push_back(static_cast<int64_t>(call.chunks.size()));
  }
  return call;
}

void point(cpu::RecurrenceCall& call, const variable_list& in) {
  call.q = source(in[kQ]), call.k = source(in[kK]), call.v = source(in[kV]);
  call.beta = data(in[kBeta]), call.g = data(in[kG]), call.S = data(in[kS]);
}

/// The call that forward made, kept for backward.
struct Saved : torch::CustomClassHolder {
  cpu::RecurrenceCall call;
};

class LinearRecurrence : public torch::autograd::Function<LinearRecurrence> {
 public:
  /// o and S.
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const cpu::RecurrenceCall& pieces,
                               bool differentiable) {
    variable_list in = inputs.vec();
    cpu::RecurrenceCall call = pieces;
    point(call, in);
    const Tensor o = filled_by_kernel(at::empty_like(in[kV])), S = at::empty_like(in[kS]);
    if (differentiable) {
      const auto saves = [&](at::IntArrayRef sizes) {
        in.push_back(filled_by_kernel(at::empty(sizes, in[kS].options())));
      };
      saves(call.beta ? in[kV].sizes() : at::IntArrayRef{0});
      saves({call.states_saved(), call.K, call.V});
      keep(call, in);
      auto saved = c10::make_intrusive<Saved>();
      saved->call = call;
      context->saved_data["call"] = c10::IValue::make_capsule(saved);
      context->save_for_backward(in);
      context->set_materialize_grads(true);
    }
    cpu::linear_recurrence_forward(call, {target(o), mutable_data(S)});
    return {o, S};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    if (at::GradMode::is_enabled()) {
      fail("linear_recurrence: the fused kernel has no second derivative, expected --kernels reference");
    }
    const variable_list saved = context->get_saved_variables();
    const auto holder = context->saved_data["call"].toCapsule();
    cpu::RecurrenceCall call = static_cast<Saved*>(holder.get())->call;
    point(call, saved);
    keep(call, saved);
    const Tensor o = gradients[0].contiguous(), S_after = gradients[1].contiguous();
    variable_list d(kInputs);
    for (int i = 0; i < kInputs; ++i) d[i] = filled_by_kernel(at::empty_like(saved[i]));
    cpu::linear_recurrence_backward(call, {source(o), data(S_after), target(d[kQ]), target(d[kK]), target(d[kV]),
                                           mutable_data(d[kBeta]), mutable_data(d[kG]), mutable_data(d[kS])});
    d.insert(d.end(), 2, Tensor());  // of the pieces and the flag
    return d;
  }

 private:
  static void keep(cpu::RecurrenceCall& call, const variable_list& in) {
    call.errors = mutable_data(in[kErrors]), call.states = mutable_data(in[kStates]);
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

std::optional<RecurrenceOutput> fused(const char* who, const RecurrenceInput& in) {
  cpu::RecurrenceCall call = sized(who, in);
  if (!has_kernel(in) || (in.rows && !has_rows(in.S))) return {};
  variable_list inputs = {in.q, in.k, in.v, in.beta, in.g, in.S};
  bool differentiable = false;
  for (Tensor& x : inputs) {
    if (!x.defined()) continue;
    differentiable |= x.requires_grad();
    if (!(in.rows && x.is_same(in.S))) x = x.contiguous();
  }
  differentiable &= at::GradMode::is_enabled();
  check_step(who, in, in.S, call.B, call.T, differentiable);
  if (call.T == 1 && !differentiable) return step(call, inputs, in);
  for (Tensor& x : inputs) {
    if (!x.defined()) x = at::empty({0}, in.S.options());
  }
  const auto out = LinearRecurrence::apply(at::TensorList(inputs), cut(std::move(call), in.starts), differentiable);
  return RecurrenceOutput{out[0], out[1]};
}

}  // namespace

const Operation<RecurrenceOutput, RecurrenceInput> linear_attention("linear_attention", [](const RecurrenceInput& in) {
  return fused("linear_attention", in);
});
const Operation<RecurrenceOutput, RecurrenceInput> delta_rule("delta_rule", [](const RecurrenceInput& in) {
  return fused("delta_rule", in);
});

}  // namespace lineal::kernels
