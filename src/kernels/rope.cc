// Rotary embedding as one differentiable operation: checks, memory and autograd around the kernel.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/cpu/rope.h"
#include "kernels/kernels.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// c and s are tables [P, K], see cpu/rope.h.
Tensor run(const Tensor& x, const Tensor& c, const Tensor& s, const Tensor& place, bool interleaved, float sign) {
  const Tensor from = x.contiguous(), y = unfilled_like(from);
  const cpu::RopeCall call = {.tokens = place.numel(),
                              .H = x.size(2),
                              .K = x.size(3),
                              .bfloat16 = x.scalar_type() == at::kBFloat16,
                              .interleaved = interleaved,
                              .sign = sign,
                              .x = from.const_data_ptr(),
                              .c = c.const_data_ptr<float>(),
                              .s = s.const_data_ptr<float>(),
                              .place = place.const_data_ptr<int64_t>(),
                              .y = y.mutable_data_ptr()};
  record("lineal::rope", [&] { cpu::rope(call); });
  return y;
}

class Rope : public torch::autograd::Function<Rope> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& c, const Tensor& s,
                        const Tensor& place, bool interleaved) {
    context->save_for_backward({c, s, place});
    context->saved_data["interleaved"] = interleaved;
    return run(x, c, s, place, interleaved, 1);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_backward("rope", gradients);
    const variable_list saved = context->get_saved_variables();
    const bool interleaved = context->saved_data["interleaved"].toBool();
    return {run(gradients[0], saved[0], saved[1], saved[2], interleaved, -1), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::optional<Tensor> fused(const RopeInput& in) {
  Dims dims("rope");
  dims.check(in.x, "BTHK", "x");
  dims.check(in.c, "PK", "c");
  dims.check(in.s, "PK", "s");
  dims.check(in.place, "BT", "place");
  const auto type = in.x.scalar_type();
  if (!in.x.is_cpu() || (type != at::kFloat && type != at::kBFloat16) || in.x.numel() == 0) return {};
  for (const Tensor* table : {&in.c, &in.s}) {
    if (!table->is_cpu() || table->scalar_type() != at::kFloat) return {};
  }
  if (dims['K'] % 2 != 0) fail("rope: x is ", in.x.sizes(), ", expected an even last size, of pairs");
  check_range("rope", in.place, dims['P'] - 1, "place");
  const Tensor c = in.c.contiguous(), s = in.s.contiguous(), place = in.place.contiguous();
  const bool differentiable = at::GradMode::is_enabled() && in.x.requires_grad();
  return differentiable ? Rope::apply(in.x, c, s, place, in.interleaved) : run(in.x, c, s, place, in.interleaved, 1);
}

}  // namespace

const Operation<Tensor, RopeInput> rope("rope", fused);

}  // namespace lineal::kernels
