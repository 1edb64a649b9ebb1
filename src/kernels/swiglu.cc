// SwiGLU's gate as one differentiable operation: checks, memory and autograd around the kernel.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/backward.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/kernels.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

cpu::SwigluCall make_call(const Tensor& a, const Tensor& b) {
  return {a.numel(), a.scalar_type() == at::kBFloat16, a.const_data_ptr(), b.const_data_ptr()};
}

Tensor run(const Tensor& a, const Tensor& b) {
  const Tensor y = unfilled_like(a);
  record("lineal::swiglu", [&] { cpu::swiglu_forward(make_call(a, b), y.mutable_data_ptr()); });
  return y;
}

class Swiglu : public torch::autograd::Function<Swiglu> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& a, const Tensor& b) {
    context->save_for_backward({a, b});
    return run(a, b);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_backward("swiglu", gradients);
    const variable_list saved = context->get_saved_variables();
    const Tensor dy = gradients[0].contiguous(), da = unfilled_like(saved[0]), db = unfilled_like(saved[1]);
    cpu::swiglu_backward(make_call(saved[0], saved[1]), dy.const_data_ptr(), da.mutable_data_ptr(),
                         db.mutable_data_ptr());
    return {da, db};
  }
};

std::optional<Tensor> fused(const Tensor& gate, const Tensor& up) {
  if (gate.sizes() != up.sizes()) {
    fail("swiglu: the gate is ", gate.sizes(), " and up ", up.sizes(), ", expected the same sizes");
  }
  const auto type = gate.scalar_type();
  if (!gate.is_cpu() || !up.is_cpu() || type != up.scalar_type()) return {};
  if (type != at::kFloat && type != at::kBFloat16) return {};
  const Tensor a = gate.contiguous(), b = up.contiguous();
  const bool differentiable = at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad());
  return differentiable ? Swiglu::apply(a, b) : run(a, b);
}

}  // namespace

const Operation<Tensor, Tensor, Tensor> swiglu("swiglu", fused);

}  // namespace lineal::kernels
