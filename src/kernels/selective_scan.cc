// The selective scan as one differentiable operation: checks, memory and autograd around the kernels.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/cpu/selective_scan.h"
#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Inputs in the order autograd sees them, and what is saved beside them; the absent are empty on their way through it.
enum { kU, kDelta, kA, kB, kC, kD, kZ, kBias, kH, kInputs, kStarts = kInputs, kStates, kSaved };

bool present(const Tensor& x) { return x.defined() && x.numel() > 0; }
const float* data(const Tensor& x) { return present(x) ? x.const_data_ptr<float>() : nullptr; }
float* mutable_data(const Tensor& x) { return present(x) ? x.mutable_data_ptr<float>() : nullptr; }
void* any_data(const Tensor& x) { return present(x) ? x.mutable_data_ptr() : nullptr; }

/// x [B, T, ...] whose tokens are contiguous, itself if they are.
Tensor with_tokens(const Tensor& x) {
  int64_t step = 1;
  for (int64_t i = x.dim() - 1; i >= 2; step *= x.size(i--)) {
    if (x.size(i) != 1 && x.stride(i) != step) return x.contiguous();
  }
  return x;
}
cpu::TokenRows tokens(const Tensor& x) {
  return present(x) ? cpu::TokenRows{x.const_data_ptr(), x.stride(0), x.stride(1)} : cpu::TokenRows{};
}

cpu::ScanCall make_call(const variable_list& in, const Tensor& starts, bool softplus) {
  cpu::ScanCall call{};
  call.B = in[kU].size(0), call.T = in[kU].size(1), call.D = in[kU].size(2);
  call.G = in[kB].size(2), call.N = in[kB].size(3);
  call.bfloat16 = in[kU].scalar_type() == at::kBFloat16;
  call.softplus = softplus;
  call.u = tokens(in[kU]), call.delta = tokens(in[kDelta]), call.z = tokens(in[kZ]);
  call.B_t = tokens(in[kB]), call.C_t = tokens(in[kC]);
  call.A = data(in[kA]), call.skip = data(in[kD]), call.bias = data(in[kBias]), call.h = data(in[kH]);
  call.starts = present(starts) ? starts.const_data_ptr<bool>() : nullptr;
  return call;
}

/// y and h; `states` for the backward pass, or empty.
variable_list run(const variable_list& in, const Tensor& starts, bool softplus, const Tensor& states) {
  cpu::ScanCall call = make_call(in, starts, softplus);
  call.states = mutable_data(states);
  const Tensor y = unfilled(in[kU].sizes(), in[kU].options());
  const Tensor h = at::empty(in[kH].sizes(), in[kH].options());
  cpu::selective_scan_forward(call, {any_data(y), mutable_data(h)});
  return {y, h};
}

/// One token a row without gradients, in the rows of a pool or into a new state.
ScanOutput step(const variable_list& in, const Tensor& starts, bool softplus, const Rows* rows) {
  const Tensor y = at::empty(in[kU].sizes(), in[kU].options());
  const Tensor h = rows ? in[kH] : at::empty(in[kH].sizes(), in[kH].options());
  const cpu::ScanCall call = make_call(in, starts, softplus);
  const cpu::StatePart moved = part(in[kH], h, rows);
  record("lineal::selective_scan_step", [&] { cpu::selective_scan_step(call, moved, any_data(y)); });
  return {y, h};
}

class SelectiveScan : public torch::autograd::Function<SelectiveScan> {
 public:
  /// y and h.
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const Tensor& starts, bool softplus) {
    variable_list saved = inputs.vec();
    const Tensor states = unfilled({make_call(saved, starts, softplus).states_size()}, saved[kH].options());
    const variable_list out = run(saved, starts, softplus, states);
    saved.push_back(starts);
    saved.push_back(states);
    context->save_for_backward(saved);
    context->saved_data["softplus"] = softplus;
    context->set_materialize_grads(true);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_backward("selective_scan", gradients);
    const variable_list in = context->get_saved_variables();
    cpu::ScanCall call = make_call(in, in[kStarts], context->saved_data["softplus"].toBool());
    call.states = mutable_data(in[kStates]);
    const Tensor y = with_tokens(gradients[0]), h_after = gradients[1].contiguous();
    variable_list d(kInputs);
    for (int i = 0; i < kInputs; ++i) d[i] = unfilled(in[i].sizes(), in[i].options());
    const auto work = [&](int64_t size) { return unfilled({size}, in[kH].options()); };
    const auto per_row = [&](int i) { return work(call.B * in[i].numel()); };
    const Tensor A_row = per_row(kA), skip_row = per_row(kD), bias_row = per_row(kBias);
    const Tensor partials = work(call.partials_size());
    cpu::selective_scan_backward(call, {.y = tokens(y),
                                        .h_after = data(h_after),
                                        .u = any_data(d[kU]),
                                        .delta = any_data(d[kDelta]),
                                        .z = any_data(d[kZ]),
                                        .B_t = any_data(d[kB]),
                                        .C_t = any_data(d[kC]),
                                        .A = mutable_data(d[kA]),
                                        .skip = mutable_data(d[kD]),
                                        .bias = mutable_data(d[kBias]),
                                        .h = mutable_data(d[kH]),
                                        .A_row = mutable_data(A_row),
                                        .skip_row = mutable_data(skip_row),
                                        .bias_row = mutable_data(bias_row),
                                        .partials = mutable_data(partials)});
    d.insert(d.end(), 2, Tensor());  // of the documents and the flag
    return d;
  }
};

std::optional<ScanOutput> fused(const ScanInput& in) {
  Dims dims("selective_scan");
  dims.check(in.u, "BTD", "u");
  dims.check(in.delta, "BTD", "delta");
  dims.check(in.A, "DN", "A");
  dims.check(in.B, "BTGN", "B");
  dims.check(in.C, "BTGN", "C");
  if (in.D.defined()) dims.check(in.D, "D", "D");
  if (in.z.defined()) dims.check(in.z, "BTD", "z");
  if (in.bias.defined()) dims.check(in.bias, "D", "bias");
  dims.check(in.h, in.rows ? "PDN" : "BDN", "h");
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  if (in.u.numel() == 0 || in.B.numel() == 0 || (in.rows && !has_rows(in.h))) return {};
  if (dims['D'] % dims['G'] != 0) {
    fail("selective_scan: B has ", dims['G'], " groups, expected a divisor of the ", dims['D'], " channels");
  }
  const at::ScalarType type = in.u.scalar_type();
  if (type != at::kFloat && type != at::kBFloat16) return {};
  variable_list inputs = {in.u, in.delta, in.A, in.B, in.C, in.D, in.z, in.bias, in.h};
  bool differentiable = false;
  for (int i = 0; i < kInputs; ++i) {
    Tensor& x = inputs[i];
    const bool per_token = i == kU || i == kDelta || i == kZ || i == kB || i == kC;
    if (!x.defined()) x = at::empty({0}, in.u.options().dtype(per_token ? type : at::kFloat));
    if (!x.is_cpu() || x.scalar_type() != (per_token ? type : at::kFloat)) return {};
    differentiable |= x.requires_grad();
    if (!(i == kH && in.rows)) x = per_token && x.numel() > 0 ? with_tokens(x) : x.contiguous();
  }
  differentiable &= at::GradMode::is_enabled();
  check_type("selective_scan", in.starts, at::kBool, "starts");
  check_step("selective_scan", in, in.h, dims['B'], dims['T'], differentiable);
  const Tensor starts = in.starts.defined() ? in.starts.contiguous() : at::empty({0}, at::kBool);
  if (dims['T'] == 1 && !differentiable) return step(inputs, starts, in.softplus, in.rows);
  const variable_list out = differentiable ? SelectiveScan::apply(at::TensorList(inputs), starts, in.softplus)
                                           : run(inputs, starts, in.softplus, Tensor());
  return ScanOutput{out[0], out[1]};
}

}  // namespace

const Operation<ScanOutput, ScanInput> selective_scan("selective_scan", fused);

}  // namespace lineal::kernels
