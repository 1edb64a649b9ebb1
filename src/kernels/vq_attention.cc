// Attention over quantised keys as two operations: checks, memory and autograd around the kernels.
#include "kernels/vq_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dims.h"
#include "kernels/arguments.h"
#include "kernels/backward.h"
#include "kernels/cpu/vq_attention.h"
#include "kernels/record.h"
#include "kernels/unfilled.h"

namespace lineal::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRunTokens = 2048, kRunBlocks = 64;

/// Inputs in the order autograd sees them: the past tokens stand before the call's in k, v and code.
enum { kQ, kP, kK, kV, kR, kMean, kInputs, kCode = kInputs, kCodebook, kCount, kAll };
/// What is saved beside them.
enum { kO = kAll, kLogSum, kRunCount, kRunMean, kCountAfter };

bool is_float(const Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; }

std::optional<Tensor> fused_nearest_code(const Tensor& k, const Tensor& codebook) {
  Dims dims("nearest_code");
  dims.check(k, "BTHK", "k");
  dims.check(codebook, "HMK", "codebook");
  if (!is_float(k) || !is_float(codebook) || k.numel() == 0 || codebook.numel() == 0) return {};
  const Tensor from = k.contiguous(), words = codebook.contiguous();
  const Tensor code = at::empty({dims['B'], dims['T'], dims['H']}, k.options().dtype(at::kLong));
  record("lineal::nearest_code", [&] {
    cpu::nearest_code(dims['B'] * dims['T'], dims['H'], dims['K'], dims['M'], from.const_data_ptr<float>(),
                      words.const_data_ptr<float>(), code.mutable_data_ptr<int64_t>());
  });
  return code;
}

/// The blocks and runs of every row; last [B]: how many of the last places later tokens see one by one.
cpu::VqCall cut(const VqInput& in, const Dims& dims, const Tensor& last) {
  const int64_t T = dims['T'], W = dims['W'], window = in.r.size(0) - 1;
  cpu::VqCall call{.B = dims['B'],
                   .T = T,
                   .E = W + T,
                   .H = dims['H'],
                   .K = dims['K'],
                   .V = dims['V'],
                   .M = dims['M'],
                   .R = window + 1,
                   .aggregate = in.count.defined()};
  const Tensor position = in.position.cpu().contiguous();
  const Tensor starts = in.starts.defined() ? in.starts.cpu().contiguous() : Tensor();
  const auto recent = [&](int64_t place) {
    return std::max<int64_t>(0, (call.aggregate ? place - place % in.block : place) - window);
  };
  for (int64_t b = 0; b < call.B; ++b) {
    const bool* start = starts.defined() ? starts.const_data_ptr<bool>() + b * T : nullptr;
    int64_t place = position.const_data_ptr<int64_t>()[b];  // in the document
    cpu::VqRun run{};
    const auto close = [&] {
      run.end = static_cast<int64_t>(call.blocks.size());
      run.b = b;
      run.before = call.overlaps();
      const cpu::VqBlock &first = call.blocks[static_cast<size_t>(run.first)], &end = call.blocks.back();
      run.lowest = first.recent;
      for (int64_t i = run.first; i < run.end; ++i) {
        run.lowest = std::min(run.lowest, call.blocks[static_cast<size_t>(i)].recent);
      }
      run.overlap = first.first - run.lowest;
      run.places = end.first + end.count - run.lowest;
      call.runs.push_back(run);
      run = {.first = run.end};
    };
    run.first = static_cast<int64_t>(call.blocks.size());
    int64_t tokens = 0;
    for (int64_t t = 0; t < T;) {
      if (start && start[t]) place = 0;
      const int64_t most = std::min(T - t, in.block - place % in.block);
      int64_t count = 1;
      while (count < most && !(start && start[t + count])) ++count;
      const int64_t from = W + t - (place - recent(place)), next = place + count;
      if (from < 0) {
        fail("vq_attention: the state holds ", W, " past tokens, expected ", window + in.block - 1, " for window ",
             window, " and blocks of ", in.block);
      }
      const int64_t leave = call.aggregate ? from + recent(next) - recent(place) : from;
      call.blocks.push_back({W + t, count, from, leave, place == 0});
      t += count;
      place = next;
      tokens += count;
      const auto blocks = static_cast<int64_t>(call.blocks.size()) - run.first;
      if (t == T || blocks >= kRunBlocks || tokens >= std::max(kRunTokens, 2 * window)) close(), tokens = 0;
    }
    last.mutable_data_ptr<int64_t>()[b] = place - recent(place);
  }
  return call;
}

/// Codes are indices where tokens leave the window; those of older tokens say nothing.
void check_codes(const cpu::VqCall& call, const Tensor& code) {
  const int64_t* codes = code.const_data_ptr<int64_t>();
  for (const cpu::VqRun& run : call.runs) {
    for (int64_t i = run.first; i < run.end; ++i) {
      const cpu::VqBlock& block = call.blocks[static_cast<size_t>(i)];
      for (int64_t at = (run.b * call.E + block.recent) * call.H; at < (run.b * call.E + block.leave) * call.H; ++at) {
        if (codes[at] >= 0 && codes[at] < call.M) continue;
        fail("vq_attention: a token has code ", codes[at], ", expected 0 to ", call.M - 1);
      }
    }
  }
}

/// The call that forward made, kept for backward.
struct Saved : torch::CustomClassHolder {
  cpu::VqCall call;
};

void point(cpu::VqCall& call, const variable_list& x) {
  call.q = x[kQ].const_data_ptr<float>(), call.p = x[kP].const_data_ptr<float>();
  call.k = x[kK].const_data_ptr<float>(), call.v = x[kV].const_data_ptr<float>();
  call.code = x[kCode].const_data_ptr<int64_t>(), call.codebook = x[kCodebook].const_data_ptr<float>();
  call.r = x[kR].const_data_ptr<float>();
  call.count = x[kCount].const_data_ptr<int64_t>(), call.mean = x[kMean].const_data_ptr<float>();
  call.run_count = x[kRunCount].mutable_data_ptr<int64_t>(), call.run_mean = x[kRunMean].mutable_data_ptr<float>();
}

class VqAttention : public torch::autograd::Function<VqAttention> {
 public:
  /// o, the means and the counts after the call.
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const cpu::VqCall& pieces,
                               bool differentiable) {
    variable_list x = inputs.vec();
    cpu::VqCall call = pieces;
    const auto runs = static_cast<int64_t>(call.runs.size());
    const auto floats = x[kQ].options();
    const auto of_runs = [&](const Tensor& part) {
      auto sizes = part.sizes().vec();
      sizes[0] = call.aggregate ? runs : 0;
      return unfilled(sizes, part.options());
    };
    x.push_back(unfilled({call.B, call.T, call.H, call.V}, floats));
    x.push_back(at::empty({differentiable ? call.B : 0, call.T, call.H}, floats));
    x.push_back(of_runs(x[kCount]));
    x.push_back(of_runs(x[kMean]));
    x.push_back(at::empty_like(x[kCount]));
    const Tensor mean = at::empty_like(x[kMean]);
    point(call, x);
    const cpu::VqResult result = {x[kO].mutable_data_ptr<float>(),
                                  differentiable ? x[kLogSum].mutable_data_ptr<float>() : nullptr,
                                  x[kCountAfter].mutable_data_ptr<int64_t>(), mean.mutable_data_ptr<float>()};
    record("lineal::vq_attention", [&] { cpu::vq_attention_forward(call, result); });
    const Tensor o = x[kO], count = x[kCountAfter];
    if (differentiable) {
      auto saved = c10::make_intrusive<Saved>();
      saved->call = call;
      context->saved_data["call"] = c10::IValue::make_capsule(saved);
      context->save_for_backward(x);
      context->mark_non_differentiable({count});
    }
    return {o, mean, count};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_backward("vq_attention", gradients);
    const variable_list x = context->get_saved_variables();
    const auto holder = context->saved_data["call"].toCapsule();
    cpu::VqCall call = static_cast<Saved*>(holder.get())->call;
    point(call, x);
    const auto runs = static_cast<int64_t>(call.runs.size());
    const auto floats = x[kQ].options();
    const auto empty = [&](at::IntArrayRef sizes) { return unfilled(sizes, floats); };
    const Tensor d_o = gradients[0].contiguous(), d_mean = gradients[1].contiguous();
    variable_list d(kInputs);
    for (const int i : {kQ, kP, kK, kV, kMean}) d[i] = unfilled_like(x[i]);
    const Tensor r = empty({runs, call.H, call.R, call.K});
    const Tensor overlap_k = empty({call.overlaps(), call.H, call.K}),
                 overlap_v = empty({call.overlaps(), call.H, call.V});
    const Tensor run_sum = at::empty_like(x[kRunMean]);
    record("lineal::vq_attention_backward", [&] {
      cpu::vq_attention_backward(
          call,
          {x[kO].const_data_ptr<float>(), d_o.const_data_ptr<float>(), x[kLogSum].const_data_ptr<float>(),
           x[kCountAfter].const_data_ptr<int64_t>(), d_mean.const_data_ptr<float>(), d[kQ].mutable_data_ptr<float>(),
           d[kP].mutable_data_ptr<float>(), d[kK].mutable_data_ptr<float>(), d[kV].mutable_data_ptr<float>(),
           d[kMean].mutable_data_ptr<float>(), r.mutable_data_ptr<float>(), overlap_k.mutable_data_ptr<float>(),
           overlap_v.mutable_data_ptr<float>(), run_sum.mutable_data_ptr<float>()});
    });
    d[kR] = r.sum(0).flip(1).transpose(0, 1);
    d.resize(kAll + 2);  // none of codes, codebook and counts, of the pieces and the flag
    return d;
  }
};

std::optional<VqOutput> fused_vq_attention(const VqInput& in) {
  Dims dims("vq_attention");
  dims.check(in.q, "BTHK", "q");
  dims.check(in.p, "BTHK", "p");
  dims.check(in.k, "BTHK", "k");
  dims.check(in.v, "BTHV", "v");
  dims.check(in.code, "BTH", "code");
  dims.check(in.codebook, "HMK", "codebook");
  dims.check(in.r, "RHK", "r");
  dims.check(in.position, "B", "position");
  if (in.starts.defined()) dims.check(in.starts, "BT", "starts");
  dims.check(in.past_k, "BWHK", "past_k");
  dims.check(in.past_v, "BWHV", "past_v");
  dims.check(in.past_code, "BWH", "past_code");
  if (in.count.defined()) {
    dims.check(in.count, "BHM", "count");
    dims.check(in.mean, "BHMV", "mean");
  }
  for (const Tensor* x : {&in.q, &in.p, &in.k, &in.v, &in.codebook, &in.r, &in.past_k, &in.past_v, &in.mean}) {
    if (x->defined() && !is_float(*x)) return {};
  }
  if (in.q.numel() == 0 || in.v.numel() == 0 || in.codebook.numel() == 0) return {};
  if (dims['R'] < 1 || in.block < 1) {
    fail("vq_attention: r is ", in.r.sizes(), " and the block ", in.block,
         ", expected at least 1 distance and 1 token");
  }
  check_at_least_0("vq_attention", in.position, "position");
  check_type("vq_attention", in.starts, at::kBool, "starts");
  check_type("vq_attention", in.count, at::kLong, "count");
  check_type("vq_attention", in.code, at::kLong, "code");
  check_type("vq_attention", in.past_code, at::kLong, "past_code");

  const int64_t W = dims['W'], M = dims['M'];
  const Tensor k = at::cat({in.past_k, in.k}, 1), v = at::cat({in.past_v, in.v}, 1);
  const Tensor code = at::cat({in.past_code, in.code}, 1), last = at::empty({dims['B']}, at::kLong);
  const cpu::VqCall call = cut(in, dims, last);
  check_codes(call, code);
  const auto none = [&](const Tensor& part, at::ScalarType type) {
    return part.defined() ? part.contiguous() : at::empty({0, dims['H'], M, dims['V']}, in.q.options().dtype(type));
  };
  const variable_list inputs = {in.q.contiguous(),        in.p.contiguous(),         k,    v,
                                in.r.contiguous(),        none(in.mean, at::kFloat), code, in.codebook.contiguous(),
                                none(in.count, at::kLong)};
  bool differentiable = false;
  for (const Tensor& x : inputs) differentiable |= x.requires_grad();
  differentiable &= at::GradMode::is_enabled();
  const auto out = VqAttention::apply(at::TensorList(inputs), call, differentiable);

  const Tensor stays = at::arange(W, 0, -1, at::kLong) <= last.unsqueeze(1);  // [B, W]
  const auto kept = [&](const Tensor& x, const at::Scalar& before) {
    const Tensor part = x.slice(1, x.size(1) - W);
    return at::where(x.dim() == 4 ? stays.unsqueeze(2).unsqueeze(3) : stays.unsqueeze(2), part, before);
  };
  VqOutput result{.o = out[0], .past_k = kept(k, 0), .past_v = kept(v, 0), .past_code = kept(code, M)};
  if (in.count.defined()) result.count = out[2], result.mean = out[1];
  return result;
}

}  // namespace

const Operation<Tensor, Tensor, Tensor> nearest_code("nearest_code", fused_nearest_code);
const Operation<VqOutput, VqInput> vq_attention("vq_attention", fused_vq_attention);

}  // namespace lineal::kernels
