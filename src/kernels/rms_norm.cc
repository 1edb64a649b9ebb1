// RMS norm of a residual sum as one differentiable operation: checks, memory and autograd around the kernel.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/backward.h"
#include "kernels/cpu/rms_norm.h"
#include "kernels/kernels.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool present(const Tensor& x) { return x.defined() && x.numel() > 0; }
bool is_bfloat16(const Tensor& x) { return x.defined() && x.scalar_type() == at::kBFloat16; }

const char* name(bool adds) { return adds ? "add_rms_norm" : "rms_norm"; }

/// `added` is empty or undefined when nothing is.
cpu::NormCall make_call(const Tensor& x, const Tensor& added, const Tensor& weight, double eps, bool narrow) {
  cpu::NormCall call{};
  call.D = x.size(-1), call.rows = x.numel() / call.D;
  call.eps = static_cast<float>(eps);
  call.added_bfloat16 = is_bfloat16(added), call.y_bfloat16 = narrow;
  call.x = x.const_data_ptr<float>();
  call.added = present(added) ? added.const_data_ptr() : nullptr;
  call.weight = weight.const_data_ptr<float>();
  return call;
}

/// y, the sum (x itself when nothing is added), and for the backward pass 1 / sqrt of each row.
variable_list run(const cpu::NormCall& call, const Tensor& x, bool differentiable) {
  const Tensor y = unfilled_like(x, x.options().dtype(call.y_bfloat16 ? at::kBFloat16 : at::kFloat));
  const Tensor sum = call.added ? unfilled_like(x) : x;
  const Tensor rstd = differentiable ? at::empty({call.rows}, x.options()) : Tensor();
  const cpu::NormResult result = {y.mutable_data_ptr(), call.added ? sum.mutable_data_ptr<float>() : nullptr,
                                  differentiable ? rstd.mutable_data_ptr<float>() : nullptr};
  record("lineal::rms_norm", [&] { cpu::rms_norm_forward(call, result); });
  return {y, sum, rstd};
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  /// y, and the sum if something is added.
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& added, const Tensor& weight,
                               double eps, bool narrow) {
    const variable_list out = run(make_call(x, added, weight, eps, narrow), x, true);
    context->save_for_backward({out[1], added, weight, out[2]});
    context->saved_data["eps"] = eps;
    context->saved_data["narrow"] = narrow;
    context->set_materialize_grads(false);
    return present(added) ? variable_list{out[0], out[1]} : variable_list{out[0]};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &added = saved[1], &weight = saved[2];
    check_backward(name(present(added)), gradients);
    const cpu::NormCall call =
        make_call(sum, added, weight, context->saved_data["eps"].toDouble(), context->saved_data["narrow"].toBool());
    const auto given = [&](size_t i) {
      return i < gradients.size() && gradients[i].defined() ? gradients[i].contiguous() : Tensor();
    };
    const Tensor dy = given(0), dsum = given(1), dw = at::empty_like(weight);
    const Tensor dx = unfilled_like(sum);
    const Tensor narrow = present(added) && is_bfloat16(added) ? unfilled_like(added) : Tensor();
    const Tensor partials = at::empty({call.pieces(), call.D}, sum.options());
    cpu::rms_norm_backward(call, {.y = dy.defined() ? dy.const_data_ptr() : nullptr,
                                  .sum_after = dsum.defined() ? dsum.const_data_ptr<float>() : nullptr,
                                  .sum = call.x,
                                  .rstd = saved[3].const_data_ptr<float>(),
                                  .x = dx.mutable_data_ptr<float>(),
                                  .added = narrow.defined() ? narrow.mutable_data_ptr() : nullptr,
                                  .weight = dw.mutable_data_ptr<float>(),
                                  .partials = partials.mutable_data_ptr<float>()});
    const Tensor dadded = !present(added) ? Tensor() : narrow.defined() ? narrow : dx;
    return {dx, dadded, dw, Tensor(), Tensor()};
  }
};

std::optional<NormOutput> fused(const NormInput& in) {
  const bool adds = in.added.defined();
  const char* const who = name(adds);
  if (adds && in.added.sizes() != in.x.sizes()) {
    fail(who, ": x is ", in.x.sizes(), " and what is added ", in.added.sizes(), ", expected the same sizes");
  }
  if (in.weight.dim() != 1 || in.x.dim() < 1 || in.weight.size(0) != in.x.size(-1)) {
    fail(who, ": x is ", in.x.sizes(), " and weight ", in.weight.sizes(), ", expected [..., D] and [D]");
  }
  if (!(in.eps >= 0)) fail(who, ": eps is ", in.eps, ", expected at least 0");
  const auto is_float = [](const Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; };
  if (!is_float(in.x) || !is_float(in.weight) || !present(in.x)) return {};
  if (adds && !is_float(in.added) && !(in.added.is_cpu() && is_bfloat16(in.added))) return {};
  const Tensor x = in.x.contiguous(), weight = in.weight.contiguous();
  const Tensor added = adds ? in.added.contiguous() : Tensor();
  const bool differentiable =
      at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || (adds && added.requires_grad()));
  variable_list out;
  if (differentiable) {  // which takes no undefined tensors
    out = RmsNorm::apply(x, adds ? added : at::empty({0}, x.options()), weight, in.eps, in.narrow);
  } else {
    out = run(make_call(x, added, weight, in.eps, in.narrow), x, false);
  }
  return NormOutput{out[0], adds ? out[1] : in.x};
}

}  // namespace

const Operation<NormOutput, NormInput> rms_norm("rms_norm", fused);

}  // namespace lineal::kernels
