#include "backbones/recompute.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace lineal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Puts autocast and the CPU generator as they were when the function first ran, for a scope.
class Replay {
 public:
  Replay(bool autocast, at::ScalarType type, const Tensor& random)
      : autocast_(at::autocast::is_autocast_enabled(at::kCPU)),
        cached_(at::autocast::is_autocast_cache_enabled()),
        type_(at::autocast::get_autocast_dtype(at::kCPU)),
        random_(at::detail::getDefaultCPUGenerator().get_state()) {
    set(autocast, type, random);
    // Nobody would clear copies of parameters made here: they would be used after the next update.
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~Replay() {
    set(autocast_, type_, random_);
    at::autocast::set_autocast_cache_enabled(cached_);
  }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

 private:
  static void set(bool autocast, at::ScalarType type, const Tensor& random) {
    at::autocast::set_autocast_enabled(at::kCPU, autocast);
    at::autocast::set_autocast_dtype(at::kCPU, type);
    auto generator = at::detail::getDefaultCPUGenerator();
    generator.set_state(random);
  }
  bool autocast_, cached_;
  at::ScalarType type_;
  Tensor random_;
};

struct Call {
  TensorFunction f;
  size_t inputs;  // of the tensors handed to the node, the first are f's inputs, the rest parameters
  bool autocast;
  at::ScalarType type;
  Tensor random;
};

struct Recompute : torch::autograd::Function<Recompute> {
  static variable_list forward(AutogradContext* ctx, const std::shared_ptr<Call>& call, at::TensorList tensors) {
    ctx->saved_data["call"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(call));
    ctx->save_for_backward(tensors.vec());
    at::NoGradGuard no_grad;
    return call->f({tensors.begin(), tensors.begin() + static_cast<int64_t>(call->inputs)});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& call = *c10::static_intrusive_pointer_cast<Holder>(ctx->saved_data["call"].toCapsule())->call;
    auto tensors = ctx->get_saved_variables();
    variable_list inputs, wanted, outputs, weights;
    for (size_t i = 0; i < call.inputs; ++i) {
      inputs.push_back(tensors[i].detach().requires_grad_(tensors[i].requires_grad()));
    }
    std::vector<size_t> places;
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!tensors[i].requires_grad()) continue;
      wanted.push_back(i < call.inputs ? inputs[i] : tensors[i]);
      places.push_back(i);
    }
    {
      const Replay replay(call.autocast, call.type, call.random);
      at::AutoGradMode enable(true);
      const auto again = call.f(inputs);
      for (size_t i = 0; i < again.size(); ++i) {
        if (!again[i].requires_grad() || !gradients[i].defined()) continue;
        outputs.push_back(again[i]);
        weights.push_back(gradients[i]);
      }
    }
    variable_list result(tensors.size() + 1);  // one slot for `call`
    if (outputs.empty()) return result;
    const auto found = torch::autograd::grad(outputs, wanted, weights, {}, false, /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) result[places[i] + 1] = found[i];
    return result;
  }

  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<Call> c) : call(std::move(c)) {}
    std::shared_ptr<Call> call;
  };
};

}  // namespace

std::vector<Tensor> recompute(TensorFunction f, const std::vector<Tensor>& inputs,
                              const std::vector<Tensor>& parameters) {
  auto tensors = inputs;
  tensors.insert(tensors.end(), parameters.begin(), parameters.end());
  auto call = std::make_shared<Call>(Call{std::move(f), inputs.size(), at::autocast::is_autocast_enabled(at::kCPU),
                                          at::autocast::get_autocast_dtype(at::kCPU),
                                          at::detail::getDefaultCPUGenerator().get_state()});
  return Recompute::apply(call, at::TensorList(tensors));
}

}  // namespace lineal
