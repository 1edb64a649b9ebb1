// The short convolution as one differentiable operation: checks, memory and autograd around the kernels.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/cpu/short_conv.h"
#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Inputs in the order autograd sees them, and what is saved beside them.
enum { kX, kWeight, kBias, kWindow, kInputs, kStarts = kInputs };

const float* data(const Tensor& x) { return x.numel() > 0 ? x.const_data_ptr<float>() : nullptr; }
float* mutable_data(const Tensor& x) { return x.numel() > 0 ? x.mutable_data_ptr<float>() : nullptr; }
Tensor with_tokens(const Tensor& x) { return x.stride(2) == 1 || x.size(2) == 1 ? x : x.contiguous(); }
cpu::TokenRows tokens(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1)}; }

cpu::ConvCall make_call(const variable_list& in, const Tensor& starts, bool silu) {
  cpu::ConvCall call{};
  call.B = in[kX].size(0), call.T = in[kX].size(1), call.D = in[kX].size(2), call.J = in[kWeight].size(2);
  call.bfloat16 = in[kX].scalar_type() == at::kBFloat16;
  call.silu = silu;
  call.x = tokens(in[kX]);
  call.weight = data(in[kWeight]), call.bias = data(in[kBias]), call.window = data(in[kWindow]);
  call.starts = starts.numel() > 0 ? starts.const_data_ptr<bool>() : nullptr;
  return call;
}

/// y and the window.
variable_list run(const variable_list& in, const Tensor& starts, bool silu) {
  const Tensor y = unfilled(in[kX].sizes(), in[kX].options());
  const Tensor window = at::empty_like(in[kWindow]);
  cpu::short_conv_forward(make_call(in, starts, silu), {y.mutable_data_ptr(), mutable_data(window)});
  return {y, window};
}

/// One token a row without gradients, in the rows of a pool or into a new window.
ConvOutput step(const variable_list& in, const Tensor& starts, bool silu, const Rows* rows) {
  const Tensor y = at::empty(in[kX].sizes(), in[kX].options());
  const Tensor window = rows ? in[kWindow] : at::empty_like(in[kWindow]);
  const cpu::ConvCall call = make_call(in, starts, silu);
  const cpu::StatePart moved = part(in[kWindow], window, rows);
  record("lineal::short_conv_step", [&] { cpu::short_conv_step(call, moved, y.mutable_data_ptr()); });
  return {y, window};
}

class ShortConvolution : public torch::autograd::Function<ShortConvolution> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const Tensor& starts, bool silu) {
    variable_list saved = inputs.vec();
    const variable_list out = run(saved, starts, silu);
    saved.push_back(starts);
    context->save_for_backward(saved);
    context->saved_data["silu"] = silu;
    context->set_materialize_grads(true);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_backward("short_conv", gradients);
    const variable_list in = context->get_saved_variables();
    const cpu::ConvCall call = make_call(in, in[kStarts], context->saved_data["silu"].toBool());
    const Tensor y = with_tokens(gradients[0]), window_after = gradients[1].contiguous();
    variable_list d(kInputs);
    for (int i = 0; i < kInputs; ++i) d[i] = unfilled(in[i].sizes(), in[i].options());
    const Tensor partials = at::empty({call.tasks() * call.partial_size()}, in[kWindow].options());
    cpu::short_conv_backward(call, {.y = tokens(y),
                                    .window_after = data(window_after),
                                    .x = d[kX].mutable_data_ptr(),
                                    .weight = mutable_data(d[kWeight]),
                                    .bias = mutable_data(d[kBias]),
                                    .window = mutable_data(d[kWindow]),
                                    .partials = mutable_data(partials)});
    d.insert(d.end(), 2, Tensor());  // of the documents and the flag
    return d;
  }
};

std::optional<ConvOutput> fused(const ConvInput& in) {
  Dims dims("short_conv", {{'1', 1}});
  dims.check(in.x, "BTD", "x");
  dims.check(in.weight, "D1J", "weight");
  dims.check(in.bias, "D", "bias");
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  const int64_t kept = in.rows ? in.rows->capacity() : dims['B'];
  if (in.window.sizes() != at::IntArrayRef{kept, dims['J'] - 1, dims['D']}) {
    fail("short_conv: window is ", in.window.sizes(), ", expected [", in.rows ? "P=" : "B=", kept,
         ", J-1=", dims['J'] - 1, ", D=", dims['D'], "]");
  }
  if (in.x.numel() == 0 || (in.rows && !has_rows(in.window))) return {};
  const at::ScalarType type = in.x.scalar_type();
  if (type != at::kFloat && type != at::kBFloat16) return {};
  variable_list inputs = {in.x, in.weight, in.bias, in.window};
  bool differentiable = false;
  for (int i = 0; i < kInputs; ++i) {
    Tensor& x = inputs[i];
    if (!x.is_cpu() || (i != kX && x.scalar_type() != at::kFloat)) return {};
    differentiable |= x.requires_grad();
    if (!(i == kWindow && in.rows)) x = i == kX ? with_tokens(x) : x.contiguous();
  }
  differentiable &= at::GradMode::is_enabled();
  check_type("short_conv", in.starts, at::kBool, "starts");
  check_step("short_conv", in, in.window, dims['B'], dims['T'], differentiable);
  const Tensor starts = in.starts.defined() ? in.starts.contiguous() : at::empty({0}, at::kBool);
  if (dims['T'] == 1 && !differentiable) return step(inputs, starts, in.silu, in.rows);
  const variable_list out =
      differentiable ? ShortConvolution::apply(at::TensorList(inputs), starts, in.silu) : run(inputs, starts, in.silu);
  return ConvOutput{out[0], out[1]};
}

}  // namespace

const Operation<ConvOutput, ConvInput> short_conv("short_conv", fused);

}  // namespace lineal::kernels
