// RWKV-4's recurrence as one differentiable operation: checks, memory and autograd around the kernel.
#include "kernels/wkv.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/cpu/wkv.h"
#include "kernels/pool.h"
#include "kernels/record.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Inputs in the order autograd sees them, and what is saved beside them.
enum { kK, kV, kW, kU, kA, kB, kP, kInputs, kStarts = kInputs };

cpu::WkvCall make_call(const variable_list& in, const Tensor& starts) {
  const auto data = [&](int i) { return in[static_cast<size_t>(i)].const_data_ptr<float>(); };
  return {.B = in[kK].size(0),
          .T = in[kK].size(1),
          .A = in[kK].size(2),
          .k = data(kK),
          .v = data(kV),
          .w = data(kW),
          .u = data(kU),
          .starts = starts.numel() > 0 ? starts.const_data_ptr<bool>() : nullptr,
          .least = static_cast<float>(kWkvLeast)};
}

/// y, a, b and p.
variable_list run(const variable_list& in, const Tensor& starts, const Rows* rows) {
  const Tensor y = at::empty_like(in[kK]);
  const auto after = [&](const Tensor& before) { return rows ? before : at::empty_like(before); };
  const Tensor a = after(in[kA]), b = after(in[kB]), p = after(in[kP]);
  const cpu::WkvState state = {part(in[kA], a, rows), part(in[kB], b, rows), part(in[kP], p, rows)};
  record("lineal::wkv", [&] { cpu::wkv_forward(make_call(in, starts), state, y.mutable_data_ptr<float>()); });
  return {y, a, b, p};
}

class Wkv : public torch::autograd::Function<Wkv> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const Tensor& starts) {
    variable_list saved = inputs.vec();
    const variable_list out = run(saved, starts, nullptr);
    saved.push_back(starts);
    context->save_for_backward(saved);
    context->set_materialize_grads(true);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_backward("wkv", gradients);
    const variable_list in = context->get_saved_variables();
    variable_list after;
    for (const Tensor& gradient : gradients) after.push_back(gradient.contiguous());
    variable_list d(kInputs);
    for (size_t i = 0; i < kInputs; ++i) d[i] = at::empty_like(in[i]);
    const Tensor w_row = at::empty_like(in[kA]), u_row = at::empty_like(in[kA]);
    const auto from = [](const Tensor& x) { return x.const_data_ptr<float>(); };
    const auto to = [](const Tensor& x) { return x.mutable_data_ptr<float>(); };
    const cpu::WkvState state = {part(in[kA], d[kA], nullptr), part(in[kB], d[kB], nullptr),
                                 part(in[kP], d[kP], nullptr)};
    cpu::wkv_backward(make_call(in, in[kStarts]), state,
                      {from(after[0]), from(after[1]), from(after[2]), from(after[3]), to(d[kK]), to(d[kV]), to(d[kA]),
                       to(d[kB]), to(d[kP]), to(w_row), to(u_row)});
    d[kW] = w_row.sum(0), d[kU] = u_row.sum(0);
    d.emplace_back();  // of the documents
    return d;
  }
};

std::optional<WkvOutput> fused(const WkvInput& in) {
  Dims dims("wkv");
  dims.check(in.k, "BTA", "k");
  dims.check(in.v, "BTA", "v");
  dims.check(in.w, "A", "w");
  dims.check(in.u, "A", "u");
  for (const auto& [name, x] : {std::pair("a", &in.a), {"b", &in.b}, {"p", &in.p}}) {
    dims.check(*x, in.rows ? "PA" : "BA", name);
  }
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  if (in.k.numel() == 0) return {};
  variable_list inputs = {in.k, in.v, in.w, in.u, in.a, in.b, in.p};
  bool differentiable = false;
  for (size_t i = 0; i < kInputs; ++i) {
    Tensor& x = inputs[i];
    if (!x.is_cpu() || x.scalar_type() != at::kFloat) return {};
    differentiable |= x.requires_grad();
    if (i < kA || !in.rows) {
      x = x.contiguous();
    } else if (!has_rows(x)) {
      return {};
    }
  }
  differentiable &= at::GradMode::is_enabled();
  check_type("wkv", in.starts, at::kBool, "starts");
  check_step("wkv", in, in.a, dims['B'], dims['T'], differentiable);
  const Tensor starts = in.starts.defined() ? in.starts.contiguous() : at::empty({0}, at::kBool);
  const variable_list out = differentiable ? Wkv::apply(at::TensorList(inputs), starts) : run(inputs, starts, in.rows);
  return WkvOutput{out[0], out[1], out[2], out[3]};
}

}  // namespace

const Operation<WkvOutput, WkvInput> wkv("wkv", fused);

}  // namespace lineal::kernels
