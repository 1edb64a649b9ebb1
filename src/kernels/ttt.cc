// TTT's inner loop as one differentiable operation: checks, memory and autograd around the kernels.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/cpu/ttt.h"
#include "kernels/kernels.h"

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

/// Inputs and results in the order autograd sees them.
enum { kQ, kK, kV, kEta, kScale, kGamma, kBeta, kInitialW, kInitialB, kW, kB, kDW, kDB, kInputs };
enum { kO, kNewW, kNewB, kNewDW, kNewDB, kKNormal, kQNormal, kKRstd, kQRstd, kStates, kSaved };

cpu::TTTLinearCall make_call(const variable_list& in, const TTTInput& options) {
  cpu::TTTLinearCall call;
  call.B = in[kQ].size(0), call.T = in[kQ].size(1), call.H = in[kQ].size(2), call.K = in[kQ].size(3);
  call.C = in[kScale].size(0);
  call.residual = options.residual;
  call.norm = present(in[kGamma]);
  call.q = data(in[kQ]), call.k = data(in[kK]), call.v = data(in[kV]), call.eta = data(in[kEta]);
  call.scale = data(in[kScale]), call.gamma = data(in[kGamma]), call.beta = data(in[kBeta]);
  call.initial = {data(in[kInitialW]), data(in[kInitialB])};
  call.W = {data(in[kW]), data(in[kB])};
  call.D = {data(in[kDW]), data(in[kDB])};
  return call;
}

/// The call that forward made, kept for backward.
struct Saved : torch::CustomClassHolder {
  cpu::TTTLinearCall call;
};

class TTTLinear : public torch::autograd::Function<TTTLinear> {
 public:
  /// The defined ones of o, W, b, DW, Db, and with `measure` the inner losses.
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const TTTInput& options,
                               bool differentiable) {
    const variable_list in = inputs.vec();
    cpu::TTTLinearCall call = make_call(in, options);
    call.blocks = inner_blocks(options, call.B, call.T, call.C);
    variable_list out(kSaved);
    const auto float32 = in[kQ].options();
    out[kO] = at::empty_like(in[kQ]);
    for (int i = 0; i < 4; ++i) {
      const Tensor& like = in[kW + i];
      if (present(like)) out[kNewW + i] = at::empty_like(like);
    }
    if (differentiable) {
      out[kKNormal] = at::empty_like(in[kQ]);
      if (call.norm) {
        out[kQNormal] = at::empty_like(in[kQ]);
        out[kKRstd] = at::empty({call.B, call.T, call.H}, float32);
        out[kQRstd] = at::empty({call.B, call.T, call.H}, float32);
      }
      out[kStates] = at::empty({call.saved_before(call.B * call.H)}, float32);
    }
    keep(call, out);
    cpu::TTTLinearResult result{mutable_data(out[kO]),
                                {mutable_data(out[kNewW]), mutable_data(out[kNewB])},
                                {mutable_data(out[kNewDW]), mutable_data(out[kNewDB])}};
    Tensor losses;
    if (options.measure) {
      losses = at::zeros({call.B * call.H, 2}, float32.dtype(at::kDouble));
      result.inner_loss = losses.mutable_data_ptr<double>();
    }
    cpu::ttt_linear_forward(call, result);
    if (differentiable) {
      auto saved = c10::make_intrusive<Saved>();
      saved->call = std::move(call);
      context->saved_data["call"] = c10::IValue::make_capsule(saved);
      variable_list tensors = in;
      tensors.insert(tensors.end(), out.begin() + kKNormal, out.end());
      context->save_for_backward(tensors);
      context->set_materialize_grads(true);
    }
    variable_list results;
    for (int i = kO; i <= kNewDB; ++i) {
      if (out[i].defined()) results.push_back(out[i]);
    }
    if (losses.defined()) {
      results.push_back(losses.sum(0) / static_cast<double>(in[kEta].numel()));
      context->mark_non_differentiable({results.back()});
    }
    return results;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    if (at::GradMode::is_enabled()) {
      fail("ttt_linear: the fused kernel has no second derivative, expected --kernels reference");
    }
    const variable_list saved = context->get_saved_variables();
    const auto holder = context->saved_data["call"].toCapsule();
    cpu::TTTLinearCall call = static_cast<Saved*>(holder.get())->call;
    const variable_list in(saved.begin(), saved.begin() + kInputs);
    variable_list out(kSaved);
    std::copy(saved.begin() + kInputs, saved.end(), out.begin() + kKNormal);
    keep(call, out);

    variable_list given(kKNormal), d(kInputs);
    for (int i = kO, next = 0; i <= kNewDB; ++i) {
      const Tensor& like = i == kO ? in[kQ] : in[kW + i - kNewW];
      if (present(like)) given[i] = gradients[next++].contiguous();
    }
    const auto per_row = [&](const Tensor& x, int64_t H) {
      if (!present(x)) return Tensor();
      auto shape = x.sizes().vec();
      if (H > 0) shape.insert(shape.begin(), H);
      shape.insert(shape.begin(), call.B);
      return at::empty(shape, x.options());
    };
    for (int i : {kQ, kK, kV, kEta, kW, kB}) {
      if (present(in[i])) d[i] = at::empty_like(in[i]);
    }
    for (int i : {kDW, kDB}) {
      if (present(in[i])) d[i] = at::zeros_like(in[i]);
    }
    for (int i : {kGamma, kBeta, kInitialW, kInitialB}) d[i] = per_row(in[i], 0);
    d[kScale] = per_row(in[kScale], call.H);
    cpu::ttt_linear_backward(call, {data(given[kO]),
                                    {data(given[kNewW]), data(given[kNewB])},
                                    {data(given[kNewDW]), data(given[kNewDB])},
                                    mutable_data(d[kQ]),
                                    mutable_data(d[kK]),
                                    mutable_data(d[kV]),
                                    mutable_data(d[kEta]),
                                    mutable_data(d[kScale]),
                                    mutable_data(d[kGamma]),
                                    mutable_data(d[kBeta]),
                                    {mutable_data(d[kInitialW]), mutable_data(d[kInitialB])},
                                    {mutable_data(d[kW]), mutable_data(d[kB])},
                                    {mutable_data(d[kDW]), mutable_data(d[kDB])}});
    for (int i : {kGamma, kBeta, kInitialW, kInitialB}) {
      if (d[i].defined()) d[i] = d[i].sum(0);
    }
    d[kScale] = d[kScale].sum({0, 1});
    d.insert(d.end(), 2, Tensor());  // of the options
    return d;
  }

 private:
  static void keep(cpu::TTTLinearCall& call, const variable_list& out) {
    call.k_normal = mutable_data(out[kKNormal]), call.q_normal = mutable_data(out[kQNormal]);
    call.k_rstd = mutable_data(out[kKRstd]), call.q_rstd = mutable_data(out[kQRstd]);
    call.states = mutable_data(out[kStates]);
  }
};

std::optional<TTTOutput> fused(const TTTInput& in) {
  Dims dims("ttt_linear");
  dims.check(in.q, "BTHK", "q");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHK", "v");
  dims.check(in.eta, "BTH", "eta");
  dims.check(in.scale, "C", "scale");
  dims.check(in.W[0], "BHKK", "W");
  if (!in.q.is_cpu() || in.q.scalar_type() != at::kFloat) return {};
  const bool bias = in.W.size() > 1;
  const auto weight = [&](const std::vector<Tensor>& list, size_t i) { return i == 0 || bias ? list[i] : Tensor(); };
  variable_list inputs = {in.q,
                          in.k,
                          in.v,
                          in.eta,
                          in.scale,
                          in.gamma,
                          in.beta,
                          in.initial[0],
                          weight(in.initial, 1),
                          in.W[0],
                          weight(in.W, 1),
                          in.D[0],
                          weight(in.D, 1)};
  bool differentiable = false;
  for (Tensor& x : inputs) {
    if (x.defined() && x.scalar_type() != at::kFloat) return {};
    differentiable |= x.defined() && x.requires_grad();
    x = x.defined() ? x.contiguous() : at::empty({0}, in.q.options());
  }
  const auto results = TTTLinear::apply(at::TensorList(inputs), in, differentiable && at::GradMode::is_enabled());
  TTTOutput out;
  size_t next = 0;
  out.o = results[next++];
  for (auto* list : {&out.W, &out.D}) {
    for (size_t i = 0; i < in.W.size(); ++i) list->push_back(results[next++]);
  }
  if (in.measure) out.inner_loss = results[next];
  return out;
}

}  // namespace

const Operation<TTTOutput, TTTInput> ttt_linear("ttt_linear", fused);

}  // namespace lineal::kernels
