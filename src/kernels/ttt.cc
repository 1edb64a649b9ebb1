// TTT's inner loop as one differentiable operation per inner model: checks, memory and autograd around the kernels.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/cpu/ttt.h"
#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Where the inner batches of each row lie, documents starting wherever they do.
std::vector<std::vector<cpu::InnerBlock>> inner_blocks(const TTTInput& in, int64_t B, int64_t T, int64_t C) {
  const Tensor position = in.position.contiguous();
  const Tensor starts = in.starts.defined() ? in.starts.contiguous() : Tensor();
  std::vector<std::vector<cpu::InnerBlock>> rows(static_cast<size_t>(B));
  for (int64_t b = 0; b < B; ++b) {
    const bool* start = starts.defined() ? starts.const_data_ptr<bool>() + b * T : nullptr;
    int64_t place = position.const_data_ptr<int64_t>()[b] % C;
    bool document = position.const_data_ptr<int64_t>()[b] == 0;
    for (int64_t t = 0; t < T;) {
      if (start && start[t]) place = 0, document = true;
      int64_t end = t + 1;
      while (end < T && place + end - t < C && !(start && start[end])) ++end;
      const bool complete = place + end - t == C;
      rows[static_cast<size_t>(b)].push_back({t, end - t, place, document, complete});
      place = complete ? 0 : place + end - t;
      document = false;
      t = end;
    }
  }
  return rows;
}

/// Autograd takes no undefined tensors: what is absent is empty on its way through it.
bool present(const Tensor& x) { return x.defined() && x.numel() > 0; }
const float* data(const Tensor& x) { return present(x) ? x.const_data_ptr<float>() : nullptr; }
float* mutable_data(const Tensor& x) { return present(x) ? x.mutable_data_ptr<float>() : nullptr; }
cpu::Tokens<const void> tokens(const Tensor& x) { return {x.const_data_ptr(), x.scalar_type() == at::kBFloat16}; }
cpu::Tokens<void> mutable_tokens(const Tensor& x) { return {x.mutable_data_ptr(), x.scalar_type() == at::kBFloat16}; }

/// Inputs in the order autograd sees them: these, then the inner model's weights three times, as W_0, W and D.
enum { kQ, kK, kV, kEta, kScale, kGamma, kBeta, kWeights };
/// What the forward pass leaves for the backward pass besides.
enum { kKNormal, kQNormal, kKRstd, kQRstd, kU, kStates, kSaved };

/// One call: what lasts from the forward to the backward pass, but for the tensors.
struct Call : torch::CustomClassHolder {
  const cpu::TTTKernel& kernel;
  cpu::TTTCall raw;
  size_t weights;         // tensors of the inner model's
  size_t W_0, W, D, end;  // where they begin among the inputs

  Call(const cpu::TTTKernel& the_kernel, const TTTInput& in)
      : kernel(the_kernel),
        weights(in.W.size()),
        W_0(kWeights),
        W(kWeights + weights),
        D(kWeights + 2 * weights),
        end(kWeights + 3 * weights) {
    raw.B = in.q.size(0), raw.T = in.q.size(1), raw.H = in.q.size(2), raw.K = in.q.size(3);
    raw.C = in.scale.size(0);
    raw.residual = in.residual;
    raw.norm = in.gamma.defined();
    raw.bias = weights > kernel.layers;
    raw.keep = kernel.keep;
    raw.state_size = kernel.state_size(raw.K);
  }

  /// The layers whose weights begin at list[first].
  template <class Float, class Data>
  cpu::Layers<Float> layers(const variable_list& list, size_t first, Data pointer) const {
    cpu::Layers<Float> result;
    for (size_t i = 0; i < kernel.layers; ++i) {
      result[i].W = pointer(list[first++]);
      if (raw.bias) result[i].b = pointer(list[first++]);
    }
    return result;
  }

  void point_to(const variable_list& in, const variable_list& saved) {
    raw.q = tokens(in[kQ]), raw.k = tokens(in[kK]), raw.v = tokens(in[kV]);
    raw.eta = data(in[kEta]), raw.scale = data(in[kScale]), raw.gamma = data(in[kGamma]), raw.beta = data(in[kBeta]);
    raw.initial = layers<const float>(in, W_0, data);
    raw.W = layers<const float>(in, W, data);
    raw.D = layers<const float>(in, D, data);
    raw.k_normal = mutable_data(saved[kKNormal]), raw.q_normal = mutable_data(saved[kQNormal]);
    raw.k_rstd = mutable_data(saved[kKRstd]), raw.q_rstd = mutable_data(saved[kQRstd]);
    raw.U = mutable_data(saved[kU]);
    raw.states = mutable_data(saved[kStates]);
  }
};

class InnerLoop : public torch::autograd::Function<InnerLoop> {
 public:
  /// o, the weights, D, and with `measure` the inner losses.
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const TTTInput& options,
                               const cpu::TTTKernel& kernel, bool differentiable) {
    const variable_list in = inputs.vec();
    auto call = c10::make_intrusive<Call>(kernel, options);
    cpu::TTTCall& raw = call->raw;
    raw.blocks = inner_blocks(options, raw.B, raw.T, raw.C);
    const auto float32 = in[kEta].options();
    variable_list saved(kSaved);
    if (differentiable) {
      saved[kKNormal] = unfilled_like(in[kQ], float32);
      if (raw.norm) {
        saved[kQNormal] = unfilled_like(in[kQ], float32);
        saved[kKRstd] = at::empty({raw.B, raw.T, raw.H}, float32);
        saved[kQRstd] = at::empty({raw.B, raw.T, raw.H}, float32);
      }
      if (const int64_t hidden = kernel.hidden(raw.K); hidden > 0) {
        saved[kU] = unfilled({raw.B, raw.H, raw.T, hidden}, float32);
      }
      saved[kStates] = unfilled({raw.saved_before(raw.B * raw.H)}, float32);
    }
    call->point_to(in, saved);
    variable_list results = {unfilled_like(in[kQ])};
    for (size_t i = call->W; i < call->end; ++i) results.push_back(at::empty_like(in[i]));
    cpu::TTTResult result{mutable_tokens(results[0]), call->layers<float>(results, 1, mutable_data),
                          call->layers<float>(results, 1 + call->weights, mutable_data)};
    Tensor losses;
    if (options.measure) {
      losses = at::zeros({raw.B * raw.H, 2}, float32.dtype(at::kDouble));
      result.inner_loss = losses.mutable_data_ptr<double>();
    }
    kernel.forward(raw, result);
    if (differentiable) {
      context->saved_data["call"] = c10::IValue::make_capsule(call);
      variable_list both = in;
      both.insert(both.end(), saved.begin(), saved.end());
      context->save_for_backward(both);
      context->set_materialize_grads(true);
    }
    if (losses.defined()) {
      results.push_back(losses.sum(0) / static_cast<double>(in[kEta].numel()));
      context->mark_non_differentiable({results.back()});
    }
    return results;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto holder = context->saved_data["call"].toCapsule();
    Call call = static_cast<const Call&>(*holder);
    check_backward(call.kernel.name, gradients);
    const variable_list all = context->get_saved_variables();
    const auto inputs = static_cast<std::ptrdiff_t>(call.end);
    const variable_list in(all.begin(), all.begin() + inputs);
    call.point_to(in, {all.begin() + inputs, all.end()});

    variable_list given;
    for (size_t i = 0; i < 1 + 2 * call.weights; ++i) given.push_back(gradients[i].contiguous());
    variable_list d(call.end);
    const auto per_row = [&](const Tensor& x, int64_t H) {  // shared inputs have a gradient from each row
      auto shape = x.sizes().vec();
      if (H > 0) shape.insert(shape.begin(), H);
      shape.insert(shape.begin(), call.raw.B);
      return at::empty(shape, x.options());
    };
    std::vector<size_t> shared;
    for (size_t i = 0; i < call.end; ++i) {
      if (!present(in[i])) continue;
      const bool is_shared = i == kGamma || i == kBeta || (i >= call.W_0 && i < call.W);
      if (is_shared) shared.push_back(i);
      d[i] = i == kScale ? per_row(in[i], call.raw.H) : is_shared ? per_row(in[i], 0) : unfilled_like(in[i]);
      if (i >= call.D) d[i].zero_();
    }
    call.kernel.backward(
        call.raw, {tokens(given[0]), call.layers<const float>(given, 1, data),
                   call.layers<const float>(given, 1 + call.weights, data), mutable_tokens(d[kQ]),
                   mutable_tokens(d[kK]), mutable_tokens(d[kV]), mutable_data(d[kEta]), mutable_data(d[kScale]),
                   mutable_data(d[kGamma]), mutable_data(d[kBeta]), call.layers<float>(d, call.W_0, mutable_data),
                   call.layers<float>(d, call.W, mutable_data), call.layers<float>(d, call.D, mutable_data)});
    for (size_t i : shared) d[i] = d[i].sum(0);
    d[kScale] = d[kScale].sum(at::IntArrayRef{0, 1});
    d.insert(d.end(), 3, Tensor());  // of the options
    return d;
  }
};

void check(const cpu::TTTKernel& kernel, const TTTInput& in) {
  Dims dims(kernel.name);
  dims.check(in.q, "BTHK", "q");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHK", "v");
  dims.check(in.eta, "BTH", "eta");
  dims.check(in.scale, "C", "scale");
  dims.check(in.position, "B", "position");
  if (in.gamma.defined() || in.beta.defined()) {
    dims.check(in.gamma, "HK", "gamma");
    dims.check(in.beta, "HK", "beta");
  }
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  const int64_t B = dims['B'], H = dims['H'], K = dims['K'];
  if (in.q.numel() == 0 || dims['C'] == 0) {
    fail(kernel.name, ": q is ", in.q.sizes(), " and scale ", in.scale.sizes(),
         ", expected none of these sizes to be 0");
  }
  const std::vector<int64_t> wide = kernel.layers == 1 ? std::vector<int64_t>{K, K} : std::vector<int64_t>{K, 4 * K, K};
  const size_t count = in.W.size();
  if ((count != kernel.layers && count != 2 * kernel.layers) || in.initial.size() != count || in.D.size() != count) {
    fail(kernel.name, ": initial, W and D have ", in.initial.size(), ", ", count, " and ", in.D.size(),
         " tensors, expected ", kernel.layers, ", or ", 2 * kernel.layers, " with biases, in each");
  }
  const size_t each = count / kernel.layers;
  for (size_t i = 0; i < count; ++i) {
    const size_t layer = i / each;
    const std::vector<int64_t> one = {H, i % each == 0 ? wide[layer] : 1, wide[layer + 1]};
    std::vector<int64_t> expected = {in.rows ? in.rows->capacity() : B};
    expected.insert(expected.end(), one.begin(), one.end());
    if (in.W[i].sizes() != expected || in.D[i].sizes() != expected) {
      fail(kernel.name, ": weight ", i, " is ", in.W[i].sizes(), ", its steps ", in.D[i].sizes(), ", expected ",
           at::IntArrayRef(expected));
    }
    if (in.initial[i].sizes() != one) {
      fail(kernel.name, ": initial weight ", i, " is ", in.initial[i].sizes(), ", expected ", at::IntArrayRef(one));
    }
  }
}

/// One token a row without gradients, in the rows of a pool or into new weights.
TTTOutput step(const cpu::TTTKernel& kernel, const TTTInput& in, const variable_list& inputs) {
  Call call(kernel, in);
  call.point_to(inputs, variable_list(kSaved));
  const Tensor position =
      in.starts.defined() ? in.position.masked_fill(in.starts.select(1, 0), 0) : in.position.contiguous();
  TTTOutput out{at::empty_like(inputs[kQ]), {}, {}, {}};
  const auto parts = [&](size_t first, std::vector<Tensor>& after) {
    cpu::TTTStep::Parts result;
    for (size_t i = 0; i < call.weights; ++i) {
      const Tensor& before = inputs[first + i];
      after.push_back(in.rows ? before : at::empty_like(before));
      auto& layer = result[call.raw.bias ? i / 2 : i];
      (call.raw.bias && i % 2 == 1 ? layer.b : layer.W) = part(before, after.back(), in.rows);
    }
    return result;
  };
  const auto W = parts(call.W, out.W), D = parts(call.D, out.D);
  const cpu::TTTStep moved = {position.const_data_ptr<int64_t>(), W, D, mutable_tokens(out.o)};
  record("lineal::ttt_step", [&] { kernel.step(call.raw, moved); });
  return out;
}

std::optional<TTTOutput> fused(const cpu::TTTKernel& kernel, const TTTInput& in) {
  check(kernel, in);
  const auto type = in.q.scalar_type();
  if (!in.q.is_cpu() || (type != at::kFloat && type != at::kBFloat16)) return {};
  check_at_least_0(kernel.name, in.position, "position");
  check_type(kernel.name, in.starts, at::kBool, "starts");
  variable_list inputs = {in.q, in.k, in.v, in.eta, in.scale, in.gamma, in.beta};
  for (const auto* list : {&in.initial, &in.W, &in.D}) inputs.insert(inputs.end(), list->begin(), list->end());
  bool differentiable = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensor& x = inputs[i];
    if (x.defined() && !(x.is_cpu() && x.scalar_type() == (i <= kV ? type : at::kFloat))) return {};
    differentiable |= x.defined() && x.requires_grad();
    const bool in_place = in.rows && i >= kWeights + in.W.size();
    if (in_place && !has_rows(x)) return {};
    if (!in_place) x = x.defined() ? x.contiguous() : at::empty({0}, in.eta.options());
  }
  const bool record = differentiable && at::GradMode::is_enabled();
  check_step(kernel.name, in, in.W[0], in.q.size(0), in.q.size(1), record);
  if (in.q.size(1) == 1 && !record && !in.measure) return step(kernel, in, inputs);
  if (in.rows) return {};
  const auto results = InnerLoop::apply(at::TensorList(inputs), in, kernel, record);
  const auto at = [&](size_t i) { return results.begin() + static_cast<std::ptrdiff_t>(i); };
  const size_t weights = in.W.size();
  TTTOutput out{results[0], {at(1), at(1 + weights)}, {at(1 + weights), at(1 + 2 * weights)}, {}};
  if (in.measure) out.inner_loss = results.back();
  return out;
}

}  // namespace

const Operation<TTTOutput, TTTInput> ttt_linear("ttt_linear",
                                                [](const TTTInput& in) { return fused(cpu::ttt_linear, in); });
const Operation<TTTOutput, TTTInput> ttt_mlp("ttt_mlp", [](const TTTInput& in) { return fused(cpu::ttt_mlp, in); });

}  // namespace lineal::kernels
