// The linear recurrences as one differentiable operation: checks, memory and autograd around the kernels.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/cpu/linear_recurrence.h"
#include "kernels/kernels.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Inputs in the order autograd sees them, and what is saved beside them; the absent are empty on their way through it.
enum { kQ, kK, kV, kBeta, kG, kS, kInputs, kErrors = kInputs, kStates };

const float* data(const Tensor& x) { return x.numel() > 0 ? x.const_data_ptr<float>() : nullptr; }
float* mutable_data(const Tensor& x) { return x.numel() > 0 ? x.mutable_data_ptr<float>() : nullptr; }

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
    const Tensor o = at::empty_like(in[kV]), S = at::empty_like(in[kS]);
    if (differentiable) {
      in.push_back(call.beta ? at::empty_like(in[kV]) : at::empty({0}, in[kV].options()));
      in.push_back(at::empty({call.states_saved(), call.K, call.V}, in[kS].options()));
      keep(call, in);
      auto saved = c10::make_intrusive<Saved>();
      saved->call = call;
      context->saved_data["call"] = c10::IValue::make_capsule(saved);
      context->save_for_backward(in);
      context->set_materialize_grads(true);
    }
    cpu::linear_recurrence_forward(call, {mutable_data(o), mutable_data(S)});
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
    for (int i = 0; i < kInputs; ++i) d[i] = at::empty_like(saved[i]);
    cpu::linear_recurrence_backward(
        call, {data(o), data(S_after), mutable_data(d[kQ]), mutable_data(d[kK]), mutable_data(d[kV]),
               mutable_data(d[kBeta]), mutable_data(d[kG]), mutable_data(d[kS])});
    d.insert(d.end(), 2, Tensor());  // of the pieces and the flag
    return d;
  }

 private:
  static void point(cpu::RecurrenceCall& call, const variable_list& in) {
    call.q = data(in[kQ]), call.k = data(in[kK]), call.v = data(in[kV]);
    call.beta = data(in[kBeta]), call.g = data(in[kG]), call.S = data(in[kS]);
  }
  static void keep(cpu::RecurrenceCall& call, const variable_list& in) {
    call.errors = mutable_data(in[kErrors]), call.states = mutable_data(in[kStates]);
  }
};

std::optional<RecurrenceOutput> fused(const char* who, const RecurrenceInput& in) {
  Dims dims(who);
  dims.check(in.q, "BTHK", "q");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHV", "v");
  if (in.beta.defined()) dims.check(in.beta, "BTH", "beta");
  if (in.g.defined()) dims.check(in.g, "BTH", "g");
  dims.check(in.S, "BHKV", "S");
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  variable_list inputs = {in.q, in.k, in.v, in.beta, in.g, in.S};
  bool differentiable = false;
  for (Tensor& x : inputs) {
    if (!x.defined()) x = at::empty({0}, in.q.options());
    if (!x.is_cpu() || x.scalar_type() != at::kFloat) return {};
    differentiable |= x.requires_grad();
    x = x.contiguous();
  }
  if (in.q.numel() == 0 || in.v.numel() == 0) return {};
  const cpu::RecurrenceCall pieces =
      cut({.B = dims['B'], .T = dims['T'], .H = dims['H'], .K = dims['K'], .V = dims['V']}, in.starts);
  const auto out =
      LinearRecurrence::apply(at::TensorList(inputs), pieces, differentiable && at::GradMode::is_enabled());
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
