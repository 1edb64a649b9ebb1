#include "kernels/torch_library.h"

#include <ATen/ATen.h>
#include <ATen/FuncTorchTLS.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <type_traits>

#include "core/error.h"
#include "kernels/kernels.h"

namespace lineal::kernels {
namespace {

using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;
using Tensors = std::vector<Tensor>;

std::map<std::string, Signature>& signatures() {
  static std::map<std::string, Signature> all;
  return all;
}

constexpr std::string_view kSpace = "lineal::", kBackward = "_backward";

/// Without lineal::.
std::string name_of(const c10::OperatorHandle& op) { return op.schema().name().substr(kSpace.size()); }

/// Of NAME, and of NAME_backward the same.
const Signature& signature(const c10::OperatorHandle& op) {
  std::string name = name_of(op);
  if (name.ends_with(kBackward)) name.resize(name.size() - kBackward.size());
  return signatures().at(name);
}

/// Calls a boxed kernel with its own arguments: on a stack there may be others' below, as under torch.func's
/// transforms.
template <auto* function>
void on_own_stack(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const auto first = stack->end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size());
  Stack own(std::make_move_iterator(first), std::make_move_iterator(stack->end()));
  stack->erase(first, stack->end());
  if constexpr (std::is_invocable_v<decltype(function), const c10::OperatorHandle&, c10::DispatchKeySet, Stack*>) {
    function(op, keys, &own);
  } else {
    function(op, &own);
  }
  stack->insert(stack->end(), std::make_move_iterator(own.begin()), std::make_move_iterator(own.end()));
}

template <auto* function>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunction<&on_own_stack<function>>();
}

/// The tensors of a value: one, those of a list, or none.
Tensors tensors(const IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  return value.isTensorList() ? value.toTensorVector() : Tensors();
}

/// The arguments or results of a call with their tensors apart.
struct Values : torch::CustomClassHolder {
  std::vector<IValue> all;

  explicit Values(c10::ArrayRef<IValue> values) : all(values.begin(), values.end()) {}

  /// The tensors of all, in order; other tensors take their place.
  Tensors exchange(at::TensorList with) {
    Tensors out;
    const auto next = [&](const Tensor& x) {
      out.push_back(x);
      return with[out.size() - 1];
    };
    for (IValue& value : all) {
      if (value.isTensor()) {
        value = next(value.toTensor());
      } else if (value.isTensorList()) {
        Tensors list = value.toTensorVector();
        for (Tensor& x : list) x = next(x);
        value = list;
      }
    }
    return out;
  }
};

Tensors flat(c10::ArrayRef<IValue> values) {
  Tensors all;
  for (const IValue& value : values) {
    for (Tensor& x : tensors(value)) all.push_back(std::move(x));
  }
  return all;
}

/// For each of the flat tensors of a call's arguments, which begin at `first`: whether it has a gradient.
std::vector<bool> differentiable(const c10::OperatorHandle& op, c10::ArrayRef<IValue> values, size_t first = 0) {
  const Signature& known = signature(op);
  std::vector<bool> result;
  for (size_t i = first; i < values.size(); ++i) {
    result.insert(result.end(), tensors(values[i]).size(),
                  known.differentiable.contains(op.schema().arguments()[i].name()));
  }
  return result;
}

c10::OperatorHandle find(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

/// A watched call.
class Watched : public torch::autograd::Function<Watched> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const c10::OperatorHandle& op,
                               const Stack& arguments, Stack& results) {
    results = arguments;
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      op.callBoxed(&results);
    }
    auto kept = c10::make_intrusive<Values>(arguments);
    kept->exchange(Tensors(inputs.size()));
    context->saved_data["arguments"] = IValue::make_capsule(kept);
    context->saved_data["name"] = op.schema().name() + std::string(kBackward);
    context->save_for_backward(inputs.vec());
    const variable_list out = flat(results);
    variable_list counts;
    for (const Tensor& x : out) {
      if (!x.is_floating_point()) counts.push_back(x);
    }
    context->mark_non_differentiable(counts);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto holder = context->saved_data["arguments"].toCapsule();
    Values arguments(static_cast<Values*>(holder.get())->all);
    const variable_list inputs = context->get_saved_variables();
    arguments.exchange(inputs);
    const auto op = find(context->saved_data["name"].toStringRef());
    variable_list given;
    for (const Tensor& x : gradients) {
      if (x.defined() && x.is_floating_point()) given.push_back(x);
    }
    Stack stack = {given};
    stack.insert(stack.end(), arguments.all.begin(), arguments.all.end());
    const auto has = differentiable(op, stack, 1);
    op.callBoxed(&stack);
    const Tensors found = stack.front().toTensorVector();
    variable_list d(inputs.size());
    for (size_t i = 0, next = 0; i < d.size(); ++i) {
      if (has[i]) d[i] = found[next++];
    }
    d.insert(d.end(), 3, Tensor());  // of the operation, its arguments and results
    return d;
  }
};

std::string joined(const std::set<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

/// Throws unless all are where the first is.
void check_device(const c10::OperatorHandle& op, const Tensors& inputs) {
  for (const Tensor& x : inputs) {
    if (!x.defined() || x.device() == inputs[0].device()) continue;
    fail(name_of(op), ": arguments on ", inputs[0].device(), " and on ", x.device(), ", expected one device");
  }
}

/// Throws where a gradient is asked for by torch.func, whose transforms do not see what the kernel does.
void check_transforms(const c10::OperatorHandle& op) {
  const auto& transforms = at::functorch::functorchTLSAccessor();
  if (!transforms) return;
  try {
    transforms->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    fail(name_of(op), ": has no gradient under transforms of torch.func, expected torch.autograd");
  }
}

void autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const auto has = differentiable(op, *stack);
  const Tensors inputs = flat(*stack);
  check_device(op, inputs);
  const bool any = std::find(has.begin(), has.end(), true) != has.end();
  bool asked = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].requires_grad() || !at::GradMode::is_enabled()) continue;
    if (any && !has[i]) {
      fail(name_of(op),
           ": an input asks for a gradient and has none; those that have: ", joined(signature(op).differentiable));
    }
    asked |= has[i];
  }
  for (const Tensor& x : inputs) {
    if (x.defined() && x._fw_grad(/*level=*/0).defined()) {
      fail(name_of(op), ": an input has a tangent, and there is no derivative in forward mode");
    }
  }
  if (!asked) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return op.callBoxed(stack);
  }
  check_transforms(op);
  const bool watched = keys.has_any(c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Functionalize}));
  if (!watched) return op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  Stack results;
  const variable_list out = Watched::apply(at::TensorList(inputs), op, *stack, results);
  Values values(results);
  values.exchange(out);
  *stack = std::move(values.all);
}

void meta(const c10::OperatorHandle& op, Stack* stack) {
  check_device(op, flat(*stack));
  Stack results;
  for (const std::string& name : signature(op).like) {
    const IValue& value = (*stack)[static_cast<size_t>(*op.schema().argumentIndexWithName(name))];
    Tensors made = tensors(value);
    for (Tensor& x : made) x = fresh_like(x);
    results.push_back(value.isTensorList() ? IValue(made) : made.empty() ? IValue() : IValue(made[0]));
  }
  *stack = std::move(results);
}

void backward(const c10::OperatorHandle& op, Stack* stack) {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const c10::impl::ForceDispatchKeyGuard with_autograd(
      local.included_, local.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  const c10::AutoGradMode enabled(true);
  const Tensors given = stack->front().toTensorVector();
  const auto has = differentiable(op, *stack, 1);
  Values arguments(c10::ArrayRef<IValue>(*stack).slice(1));
  Tensors inputs = flat(arguments.all);
  variable_list leaves;
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = inputs[i].detach();
    if (has[i]) leaves.push_back(inputs[i].requires_grad_());
  }
  arguments.exchange(inputs);
  std::string name = op.schema().name();
  name.resize(name.size() - kBackward.size());
  find(name).callBoxed(&arguments.all);
  variable_list out;
  for (const Tensor& x : flat(arguments.all)) {
    if (x.is_floating_point()) out.push_back(x);
  }
  if (given.size() != out.size()) {
    fail(name_of(op), ": ", given.size(), " gradients, expected ", out.size(), ", of each output");
  }
  variable_list d = torch::autograd::grad(out, leaves, given, false, false, true);
  for (size_t i = 0; i < d.size(); ++i) {  // results of their own, which share no memory
    if (!d[i].defined()) d[i] = at::zeros_like(leaves[i], at::MemoryFormat::Contiguous);
    d[i] = d[i].contiguous();
    const auto shares = [&](const Tensor& x) { return x.is_alias_of(d[i]); };
    const auto here = d.begin() + static_cast<std::ptrdiff_t>(i);
    if (std::any_of(d.begin(), here, shares) || std::any_of(given.begin(), given.end(), shares)) d[i] = d[i].clone();
  }
  *stack = {d};
}

void backward_meta(const c10::OperatorHandle& op, Stack* stack) {
  check_device(op, flat(*stack));
  const auto has = differentiable(op, *stack, 1);
  const Tensors inputs = flat(c10::ArrayRef<IValue>(*stack).slice(1));
  variable_list d;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (has[i]) d.push_back(fresh_like(inputs[i]));
  }
  *stack = {d};
}

}  // namespace

void fail_without_kernel(const std::string& name, const std::vector<Tensors>& given) {
  if (chosen() == Choice::reference) {
    fail(name, ": kernels are off, and an operation has no other form; lineal.kernels(\"auto\") turns them on");
  }
  const auto& arguments = find(text(kSpace, name)).schema().arguments();
  const Signature& known = signatures().at(name);
  std::vector<std::pair<std::string, Tensor>> all;
  for (size_t i = 0; i < given.size(); ++i) {
    for (const Tensor& x : given[i]) all.emplace_back(arguments[i].name(), x);
  }
  const auto described = [](const Tensor& x) {
    return text(c10::toString(x.scalar_type()), " ", x.sizes(), " on ", x.device());
  };
  if (!known.any_type) {
    std::optional<std::pair<std::string, Tensor>> first;  // of those that may be narrow
    for (const auto& [argument, x] : all) {
      const bool narrow = known.narrow.contains(argument);
      const auto type = x.scalar_type();
      if (!x.is_floating_point() && !known.differentiable.contains(argument)) continue;
      if (!x.is_cpu() || (type != at::kFloat && !(narrow && type == at::kBFloat16))) {
        fail(name, ": ", argument, " is ", described(x), ", expected Float", narrow ? " or BFloat16" : "",
             " on the CPU");
      }
      if (narrow && !first) first.emplace(argument, x);
      if (narrow && type != first->second.scalar_type()) {
        fail(name, ": ", argument, " is ", described(x), ", expected ", c10::toString(first->second.scalar_type()),
             " as ", first->first, " is");
      }
    }
  }
  for (const auto& [argument, x] : all) {
    if (x.numel() == 0) fail(name, ": ", argument, " is ", x.sizes(), ", expected no size to be 0");
  }
  std::string everything;
  for (const auto& [argument, x] : all) everything += text(everything.empty() ? "" : ", ", argument, " ", described(x));
  fail(name, ": no kernel for ", everything, "; expected Float on the CPU");
}

Tensor fresh_like(const Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

void add(torch::Library& library, const std::string& name, const std::string& arguments, const std::string& results,
         torch::CppFunction kernel, const Signature& known, std::optional<torch::CppFunction> meta_form) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  signatures()[name] = known;
  library.def(text(name, "(", arguments, ") -> ", results).c_str(), tags);
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, std::move(kernel)));
  library.impl(name.c_str(),
               torch::dispatch(c10::DispatchKey::Meta, meta_form ? *std::move(meta_form) : boxed<&meta>()));
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Autograd, boxed<&autograd>()));
  if (known.differentiable.empty()) return;
  const std::string back = name + std::string(kBackward);
  library.def(text(back, "(Tensor[] gradients, ", arguments, ") -> Tensor[]").c_str(), tags);
  library.impl(back.c_str(), torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, boxed<&backward>()));
  library.impl(back.c_str(), torch::dispatch(c10::DispatchKey::Meta, boxed<&backward_meta>()));
  library.impl(back.c_str(),
               torch::dispatch(c10::DispatchKey::Autograd, torch::autograd::autogradNotImplementedFallback()));
}

}  // namespace lineal::kernels
