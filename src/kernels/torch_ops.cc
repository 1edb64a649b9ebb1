// The fused operations under their own names and letters for Python and TorchScript: after
// torch.ops.load_library("liblineal_ops.so") they are torch.ops.lineal.NAME. What has no kernel is an error.
//
// Of each there is torch.ops.lineal.NAME_backward beside it, (gradients of the outputs, the inputs) -> gradients of the
// differentiable inputs, and both know the sizes of their results. A call on plain tensors goes to the kernel with its
// own autograd. A call that torch.compile or another mode watches is NAME, and in its backward pass NAME_backward,
// which computes anew what the kernel would have kept.
#include <ATen/ATen.h>
#include <ATen/FuncTorchTLS.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <iterator>
#include <map>
#include <set>
#include <type_traits>

#include "kernels/kernels.h"
#include "kernels/vq_attention.h"
#include "kernels/wkv.h"

namespace lineal::kernels {
namespace {

using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;
using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;

template <class Result, class... Inputs>
Result run(const Operation<Result, Inputs...>& operation, const std::type_identity_t<Inputs>&... inputs) {
  const auto none = [&](const Inputs&...) -> Result {
    fail(operation.name, ": no fused kernel for this device, type and shape");
  };
  return use(operation, none, inputs...);
}

Tensor or_none(const Optional& x) { return x.value_or(Tensor()); }
Optional optional(const Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; }

template <const Operation<TTTOutput, TTTInput>& operation>
std::tuple<Tensor, Tensors, Tensors> ttt(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& eta,
                                         const Tensor& scale, at::TensorList initial, at::TensorList W,
                                         at::TensorList D, const Tensor& position, const Optional& gamma,
                                         const Optional& beta, const Optional& starts, bool residual) {
  if (W.empty() || initial.size() != W.size() || D.size() != W.size()) {
    fail(operation.name, ": initial, W and D have ", initial.size(), ", ", W.size(), " and ", D.size(),
         " tensors, expected the inner model's weights in each");
  }
  TTTOutput out = run(operation, {.q = q,
                                  .k = k,
                                  .v = v,
                                  .eta = eta,
                                  .scale = scale,
                                  .gamma = or_none(gamma),
                                  .beta = or_none(beta),
                                  .position = position,
                                  .starts = or_none(starts),
                                  .initial = initial.vec(),
                                  .W = W.vec(),
                                  .D = D.vec(),
                                  .residual = residual});
  return {std::move(out.o), std::move(out.W), std::move(out.D)};
}

std::tuple<Tensor, Tensor> linear_attention_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& S,
                                               const Optional& g, const Optional& starts) {
  RecurrenceOutput out =
      run(linear_attention, {.q = q, .k = k, .v = v, .g = or_none(g), .S = S, .starts = or_none(starts)});
  return {std::move(out.o), std::move(out.S)};
}

std::tuple<Tensor, Tensor> delta_rule_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                         const Tensor& S, const Optional& g, const Optional& starts) {
  RecurrenceOutput out =
      run(delta_rule, {.q = q, .k = k, .v = v, .beta = beta, .g = or_none(g), .S = S, .starts = or_none(starts)});
  return {std::move(out.o), std::move(out.S)};
}

template <const Operation<FeatureAttentionOutput, FeatureAttentionInput>& operation>
std::tuple<Tensor, Tensor, Optional> features(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& projection, const Tensor& S, const Tensor& fresh,
                                              const Optional& peak, const Optional& starts, std::string_view map,
                                              double scale, double epsilon) {
  FeatureAttentionOutput out = run(operation, {.q = q,
                                               .k = k,
                                               .v = v,
                                               .projection = projection,
                                               .map = std::string(map),
                                               .scale = scale,
                                               .epsilon = epsilon,
                                               .S = S,
                                               .peak = or_none(peak),
                                               .fresh = fresh,
                                               .starts = or_none(starts)});
  return {std::move(out.o), std::move(out.S), optional(out.peak)};
}

std::tuple<Tensor, Tensor> selective_scan_op(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                             const Tensor& C, const Tensor& h, const Optional& D, const Optional& z,
                                             const Optional& bias, const Optional& starts, bool softplus) {
  ScanOutput out = run(selective_scan, {.u = u,
                                        .delta = delta,
                                        .A = A,
                                        .B = B,
                                        .C = C,
                                        .D = or_none(D),
                                        .z = or_none(z),
                                        .bias = or_none(bias),
                                        .softplus = softplus,
                                        .h = h,
                                        .starts = or_none(starts)});
  return {std::move(out.y), std::move(out.h)};
}

std::tuple<Tensor, Tensor> short_conv_op(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                         const Tensor& window, const Optional& starts, bool silu) {
  ConvOutput out = run(
      short_conv, {.x = x, .weight = weight, .bias = bias, .window = window, .starts = or_none(starts), .silu = silu});
  return {std::move(out.y), std::move(out.window)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> wkv_op(const Tensor& k, const Tensor& v, const Tensor& w, const Tensor& u,
                                                  const Tensor& a, const Tensor& b, const Tensor& p,
                                                  const Optional& starts) {
  WkvOutput out = run(wkv, {.k = k, .v = v, .w = w, .u = u, .a = a, .b = b, .p = p, .starts = or_none(starts)});
  return {std::move(out.y), std::move(out.a), std::move(out.b), std::move(out.p)};
}

Tensor nearest_code_op(const Tensor& k, const Tensor& codebook) { return run(nearest_code, k, codebook); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Optional, Optional> vq_attention_op(
    const Tensor& q, const Tensor& p, const Tensor& k, const Tensor& v, const Tensor& code, const Tensor& codebook,
    const Tensor& r, int64_t block, const Tensor& position, const Tensor& past_k, const Tensor& past_v,
    const Tensor& past_code, const Optional& count, const Optional& mean, const Optional& starts) {
  if (count.has_value() != mean.has_value()) fail("vq_attention: count and mean go together, expected both or none");
  VqOutput out = run(vq_attention, {.q = q,
                                    .p = p,
                                    .k = k,
                                    .v = v,
                                    .code = code,
                                    .codebook = codebook,
                                    .r = r,
                                    .block = block,
                                    .position = position,
                                    .starts = or_none(starts),
                                    .past_k = past_k,
                                    .past_v = past_v,
                                    .past_code = past_code,
                                    .count = or_none(count),
                                    .mean = or_none(mean)});
  return {std::move(out.o),         std::move(out.past_k), std::move(out.past_v),
          std::move(out.past_code), optional(out.count),   optional(out.mean)};
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps, bool narrow) {
  return run(rms_norm, {.x = x, .added = {}, .weight = weight, .eps = eps, .narrow = narrow}).y;
}

std::tuple<Tensor, Tensor> add_rms_norm_op(const Tensor& x, const Tensor& added, const Tensor& weight, double eps,
                                           bool narrow) {
  NormOutput out = run(rms_norm, {.x = x, .added = added, .weight = weight, .eps = eps, .narrow = narrow});
  return {std::move(out.y), std::move(out.sum)};
}

Tensor rope_op(const Tensor& x, const Tensor& c, const Tensor& s, const Tensor& place, bool interleaved) {
  return run(rope, {.x = x, .c = c, .s = s, .place = place, .interleaved = interleaved});
}

Tensor swiglu_op(const Tensor& gate, const Tensor& up) { return run(swiglu, gate, up); }

Tensor token_loss_op(const Tensor& hidden, const Tensor& head, const Tensor& targets, const Tensor& weights) {
  return run(token_loss, {.hidden = hidden, .head = head, .targets = targets, .weights = weights});
}

/// What an operation of this name is called with and returns.
struct Signature {
  std::set<std::string> differentiable;  // arguments
  std::vector<std::string> like;         // the argument each output has the sizes and the type of; or made by `meta`
};

std::map<std::string, Signature>& signatures() {
  static std::map<std::string, Signature> all;
  return all;
}

constexpr std::string_view kBackward = "_backward";

/// Of lineal::NAME, and of lineal::NAME_backward the same.
const Signature& signature(const c10::OperatorHandle& op) {
  std::string name = op.schema().name();
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

Tensor fresh_like(const Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

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
    fail(op.schema().name(), ": arguments on ", inputs[0].device(), " and on ", x.device(), ", expected one device");
  }
}

/// Throws where a gradient is asked for by torch.func, whose transforms do not see what the kernel does.
void check_transforms(const c10::OperatorHandle& op) {
  const auto& transforms = at::functorch::functorchTLSAccessor();
  if (!transforms) return;
  try {
    transforms->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    fail(op.schema().name(), ": has no gradient under transforms of torch.func, expected torch.autograd");
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
      fail(op.schema().name(),
           ": an input asks for a gradient and has none; those that have: ", joined(signature(op).differentiable));
    }
    asked |= has[i];
  }
  for (const Tensor& x : inputs) {
    if (x.defined() && x._fw_grad(/*level=*/0).defined()) {
      fail(op.schema().name(), ": an input has a tangent, and there is no derivative in forward mode");
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

Tensor rms_norm_meta(const Tensor& x, const Tensor&, double, bool narrow) {
  return at::empty_symint(x.sym_sizes(), x.options().dtype(narrow ? at::kBFloat16 : at::kFloat));
}
std::tuple<Tensor, Tensor> add_rms_norm_meta(const Tensor& x, const Tensor&, const Tensor& weight, double eps,
                                             bool narrow) {
  return {rms_norm_meta(x, weight, eps, narrow), fresh_like(x)};
}
Tensor nearest_code_meta(const Tensor& k, const Tensor&) {
  return at::empty_symint(k.sym_sizes().slice(0, 3), k.options().dtype(at::kLong));
}
Tensor token_loss_meta(const Tensor& hidden, const Tensor&, const Tensor&, const Tensor&) {
  return at::empty({}, hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
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
    fail(op.schema().name(), ": ", given.size(), " gradients, expected ", out.size(), ", of each output");
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

/// Registers NAME and NAME_backward; arguments and results as in a schema.
template <class Kernel>
void add(torch::Library& library, const std::string& name, const std::string& arguments, const std::string& results,
         Kernel* kernel, const Signature& known, torch::CppFunction meta_form) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  signatures()["lineal::" + name] = known;
  library.def(text(name, "(", arguments, ") -> ", results).c_str(), tags);
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, kernel));
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Meta, std::move(meta_form)));
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Autograd, boxed<&autograd>()));
  if (known.differentiable.empty()) return;
  const std::string back = name + std::string(kBackward);
  library.def(text(back, "(Tensor[] gradients, ", arguments, ") -> Tensor[]").c_str(), tags);
  library.impl(back.c_str(), torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, boxed<&backward>()));
  library.impl(back.c_str(), torch::dispatch(c10::DispatchKey::Meta, boxed<&backward_meta>()));
  library.impl(back.c_str(),
               torch::dispatch(c10::DispatchKey::Autograd, torch::autograd::autogradNotImplementedFallback()));
}

template <class Kernel>
void add(torch::Library& library, const std::string& name, const std::string& arguments, const std::string& results,
         Kernel* kernel, const Signature& known) {
  add(library, name, arguments, results, kernel, known, boxed<&meta>());
}

TORCH_LIBRARY(lineal, library) {
  const std::string of_ttt =
      "Tensor q, Tensor k, Tensor v, Tensor eta, Tensor scale, Tensor[] initial, Tensor[] W, Tensor[] D, "
      "Tensor position, *, Tensor? gamma=None, Tensor? beta=None, Tensor? starts=None, bool residual=True";
  const Signature ttt_signature = {{"q", "k", "v", "eta", "scale", "initial", "W", "D", "gamma", "beta"},
                                   {"q", "W", "D"}};
  const std::string ttt_results = "(Tensor o, Tensor[] W_after, Tensor[] D_after)";
  add(library, "ttt_linear", of_ttt, ttt_results, ttt<ttt_linear>, ttt_signature);
  add(library, "ttt_mlp", of_ttt, ttt_results, ttt<ttt_mlp>, ttt_signature);

  add(library, "linear_attention", "Tensor q, Tensor k, Tensor v, Tensor S, *, Tensor? g=None, Tensor? starts=None",
      "(Tensor o, Tensor S_after)", linear_attention_op, {{"q", "k", "v", "S", "g"}, {"v", "S"}});
  add(library, "delta_rule",
      "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor S, *, Tensor? g=None, Tensor? starts=None",
      "(Tensor o, Tensor S_after)", delta_rule_op, {{"q", "k", "v", "beta", "S", "g"}, {"v", "S"}});

  const std::string of_features =
      "Tensor q, Tensor k, Tensor v, Tensor projection, Tensor S, Tensor fresh, *, Tensor? peak=None, "
      "Tensor? starts=None, str map='positive', float scale=1.0, float epsilon=1e-6";
  const Signature features_signature = {{"q", "k", "v", "S", "peak"}, {"v", "S", "peak"}};
  const std::string features_results = "(Tensor o, Tensor S_after, Tensor? peak_after)";
  add(library, "feature_attention", of_features, features_results, features<feature_attention>, features_signature);
  add(library, "feature_attention_in_documents", of_features, features_results,
      features<feature_attention_in_documents>, features_signature);

  add(library, "selective_scan",
      "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor h, *, Tensor? D=None, Tensor? z=None, "
      "Tensor? bias=None, Tensor? starts=None, bool softplus=False",
      "(Tensor y, Tensor h_after)", selective_scan_op,
      {{"u", "delta", "A", "B", "C", "h", "D", "z", "bias"}, {"u", "h"}});
  add(library, "short_conv",
      "Tensor x, Tensor weight, Tensor bias, Tensor window, *, Tensor? starts=None, bool silu=False",
      "(Tensor y, Tensor window_after)", short_conv_op, {{"x", "weight", "bias", "window"}, {"x", "window"}});

  add(library, "wkv", "Tensor k, Tensor v, Tensor w, Tensor u, Tensor a, Tensor b, Tensor p, *, Tensor? starts=None",
      "(Tensor y, Tensor a_after, Tensor b_after, Tensor p_after)", wkv_op,
      {{"k", "v", "w", "u", "a", "b", "p"}, {"k", "a", "b", "p"}});
  add(library, "nearest_code", "Tensor k, Tensor codebook", "Tensor", nearest_code_op, {},
      torch::CppFunction(nearest_code_meta));
  add(library, "vq_attention",
      "Tensor q, Tensor p, Tensor k, Tensor v, Tensor code, Tensor codebook, Tensor r, int block, Tensor position, "
      "Tensor past_k, Tensor past_v, Tensor past_code, *, Tensor? count=None, Tensor? mean=None, Tensor? starts=None",
      "(Tensor o, Tensor past_k_after, Tensor past_v_after, Tensor past_code_after, Tensor? count_after, "
      "Tensor? mean_after)",
      vq_attention_op,
      {{"q", "p", "k", "v", "r", "past_k", "past_v", "mean"}, {"v", "past_k", "past_v", "past_code", "count", "mean"}});

  add(library, "rms_norm", "Tensor x, Tensor weight, float eps=1e-6, bool narrow=False", "Tensor", rms_norm_op,
      {{"x", "weight"}, {}}, torch::CppFunction(rms_norm_meta));
  add(library, "add_rms_norm", "Tensor x, Tensor added, Tensor weight, float eps=1e-6, bool narrow=False",
      "(Tensor y, Tensor sum)", add_rms_norm_op, {{"x", "added", "weight"}, {}}, torch::CppFunction(add_rms_norm_meta));
  add(library, "rope", "Tensor x, Tensor c, Tensor s, Tensor place, *, bool interleaved=False", "Tensor", rope_op,
      {{"x"}, {"x"}});
  add(library, "swiglu", "Tensor gate, Tensor up", "Tensor", swiglu_op, {{"gate", "up"}, {"gate"}});
  add(library, "token_loss", "Tensor hidden, Tensor head, Tensor targets, Tensor weights", "Tensor", token_loss_op,
      {{"hidden", "head"}, {}}, torch::CppFunction(token_loss_meta));
}

}  // namespace
}  // namespace lineal::kernels
