// The loss of a language model's head over pieces of the tokens, on any device and in any float type.
//   logits z = W h;   loss = sum_t w_t (log sum_n exp z_tn - z_t,target)
//   dz_tn = w_t (softmax(z_t)_n - [n = target]);   dh = dz W;   dW = dz^T h
// A piece's gradients are formed while its logits are there, so that nothing [tokens, N] outlives it.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/kernels.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kNumbers = 1 << 22;  // logits of a piece

/// Logits and their softmax are at least float32.
at::ScalarType wide(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

/// The loss, and with `differentiable` its gradients of h and of W.
variable_list run(const TokenLossInput& in, bool differentiable) {
  const int64_t R = in.hidden.size(0), N = in.head.size(0), size = std::max<int64_t>(1, kNumbers / N);
  const auto type = in.hidden.scalar_type();
  const Tensor W = in.head.to(type);
  Tensor loss = at::zeros({}, in.hidden.options().dtype(at::kDouble)), dW;
  std::vector<Tensor> dh;
  for (int64_t begin = 0; begin < R; begin += size) {
    const int64_t end = std::min(R, begin + size);
    const Tensor h = in.hidden.slice(0, begin, end), w = in.weights.slice(0, begin, end).unsqueeze(1);  // [P, 1]
    const Tensor target = in.targets.slice(0, begin, end).unsqueeze(1);
    Tensor z = at::matmul(h, W.t()).to(wide(h)).log_softmax(1);  // [P, N]
    loss -= (z.gather(1, target) * w).sum(at::kDouble);
    if (!differentiable) continue;
    z.exp_().scatter_add_(1, target, at::full_like(w, -1, z.options())).mul_(w);
    const Tensor dz = z.to(type);
    dh.push_back(at::matmul(dz, W));
    const Tensor part = at::matmul(dz.t(), h).to(in.head.scalar_type());
    dW = dW.defined() ? dW.add_(part) : part;
  }
  loss = loss.to(wide(in.hidden));
  return differentiable ? variable_list{loss, at::cat(dh), dW} : variable_list{loss};
}

class TokenLoss : public torch::autograd::Function<TokenLoss> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& hidden, const Tensor& head, const Tensor& targets,
                        const Tensor& weights) {
    const variable_list out = run({hidden, head, targets, weights}, true);
    context->save_for_backward({out[1], out[2]});
    return out[0];
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_derivative("token_loss");
    const variable_list saved = context->get_saved_variables();
    return {saved[0] * gradients[0], saved[1] * gradients[0], Tensor(), Tensor()};
  }
};

std::optional<Tensor> fused(const TokenLossInput& in) {
  Dims dims("token_loss");
  dims.check(in.hidden, "RD", "hidden");
  dims.check(in.head, "ND", "head");
  dims.check(in.targets, "R", "targets");
  dims.check(in.weights, "R", "weights");
  for (const auto& [x, name] : {std::pair{in.hidden, "hidden"}, {in.head, "head"}, {in.weights, "weights"}}) {
    if (!x.is_floating_point()) fail("token_loss: ", name, " is ", c10::toString(x.scalar_type()), ", expected floats");
  }
  if (in.hidden.numel() == 0 || in.head.numel() == 0) return {};
  if (in.targets.is_cpu()) check_range("token_loss", in.targets, dims['N'] - 1, "targets");
  const bool differentiable = at::GradMode::is_enabled() && (in.hidden.requires_grad() || in.head.requires_grad());
  return differentiable ? TokenLoss::apply(in.hidden, in.head, in.targets, in.weights) : run(in, false)[0];
}

}  // namespace

const Operation<Tensor, TokenLossInput> token_loss("token_loss", fused);

}  // namespace lineal::kernels
