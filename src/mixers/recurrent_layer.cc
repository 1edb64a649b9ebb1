#include "mixers/recurrent_layer.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear_recurrence.h"
#include "mixers/probe.h"

namespace lineal {
namespace {

constexpr double kLengthEps = 1e-6;
constexpr double kOutputNormEps = 1e-5;

/// Channels of a head when H of them share `expand` times D.
int64_t expanded(const std::string& who, const char* field, double expand, int64_t D, int64_t H) {
  const double size = expand * static_cast<double>(D) / static_cast<double>(H);
  if (size < 1 || size != std::floor(size)) {
    fail(who, ": ", field, " is ", expand, ", which gives heads of ", size, " channels (hidden_size ", D,
         ", num_attention_heads ", H, "), expected a whole number");
  }
  return static_cast<int64_t>(size);
}

}  // namespace

Tensor unit(const Tensor& x, at::ScalarType type) {  // as an RMS norm, which has a kernel
  const auto K = static_cast<double>(x.size(-1));
  const Tensor weight = at::full({x.size(-1)}, 1 / std::sqrt(K), x.options().dtype(type).requires_grad(false));
  return rms_norm(x.to(type), weight, kLengthEps / K, /*narrow=*/x.scalar_type() == at::kBFloat16);
}

std::vector<Field> RecurrentConfig::fields() {
  return {
      {"num_attention_heads", &num_attention_heads, size_range(), "heads, each with a state of its own"},
      {"expand_k", &expand_k, between(1.0 / (1 << 20), 64), "channels of all keys per unit of hidden_size"},
      {"expand_v", &expand_v, between(1.0 / (1 << 20), 64), "channels of all values per unit of hidden_size"},
      {"short_conv", &short_conv, {}, "a short convolution on q, k and v each"},
      {"conv_kernel", &conv_kernel, between(1, 64), "its width"},
      {"use_gate", &use_gate, {}, "multiply the output by silu of a projection"},
      {"chunk_size", &chunk_size, size_range(), "tokens computed at once; changes no result"},
  };
}

RecurrentLayer::RecurrentLayer(std::string who, const RecurrentConfig& config, int64_t D, bool silu)
    : H_(config.num_attention_heads),
      K_(expanded(who, "expand_k", config.expand_k, D, H_)),
      V_(expanded(who, "expand_v", config.expand_v, D, H_)),
      who_(std::move(who)),
      D_(D),
      chunk_size_(config.chunk_size),
      silu_(silu) {
  q_proj_ = register_module("q_proj", linear(D, H_ * K_));
  k_proj_ = register_module("k_proj", linear(D, H_ * K_));
  v_proj_ = register_module("v_proj", linear(D, H_ * V_));
  if (config.use_gate) g_proj_ = register_module("g_proj", linear(D, H_ * V_));
  if (config.short_conv) {
    conv_q_ = register_module("q_conv1d", std::make_shared<ShortConv>(H_ * K_, config.conv_kernel));
    conv_k_ = register_module("k_conv1d", std::make_shared<ShortConv>(H_ * K_, config.conv_kernel));
    conv_v_ = register_module("v_conv1d", std::make_shared<ShortConv>(H_ * V_, config.conv_kernel));
  }
  o_norm_ = register_module("o_norm", std::make_shared<RmsNorm>(V_, kOutputNormEps));
  o_proj_ = register_module("o_proj", linear(H_ * V_, D));
}

State RecurrentLayer::initial_state(int64_t B) const {
  State state;
  state["S"] = at::zeros({B, H_, K_, V_}, state_options());
  state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
  if (conv_q_) {
    state["conv_q"] = conv_q_->initial_state(B, state_options());
    state["conv_k"] = conv_k_->initial_state(B, state_options());
    state["conv_v"] = conv_v_->initial_state(B, state_options());
  }
  return state;
}

Tensor RecurrentLayer::mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
  const Dims dims = check_input(who_.c_str(), x, state, D_, rows);
  const auto view = [&](LinearMap& map, const std::shared_ptr<ShortConv>& conv, const char* window) {
    Tensor y = map(x);
    if (conv) {
      y = conv->forward(y, state[window], segments, Activation::silu, rows);
    } else if (silu_) {
      y = at::silu(y);
    }
    return y.unflatten(2, {H_, -1});  // [B, T, H, K|V]
  };
  const Tensor q = view(q_proj_, conv_q_, "conv_q"), k = view(k_proj_, conv_k_, "conv_k");
  const Tensor v = probed(probe, view(v_proj_, conv_v_, "conv_v")), position = count(state, dims['T'], segments, rows);
  Tensor o = recur({x, q, k, v, position, state_options().dtype().toScalarType(), segments, rows}, state);
  if (probe) probe->outputs = o;
  {
    const FullPrecision guard(x);
    o = o_norm_->forward(o).flatten(2);
  }
  if (g_proj_) o = o * at::silu(g_proj_(x));
  return o_proj_(o);
}

Tensor RecurrentLayer::linear_recur(kernels::RecurrenceInput recurrence, const Views& in, State& state) const {
  const FullPrecision guard(in.x);
  recurrence.S = state["S"];
  recurrence.starts = in.segments.starts;
  recurrence.rows = in.rows;
  const auto out = linear_recurrence(recurrence, chunk_size_);
  state["S"] = out.S;
  return out.o.to(in.type) / std::sqrt(static_cast<double>(K_));
}

void RecurrentLayer::reset_parameters(double deviation) {
  for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &g_proj_, &o_proj_}) {
    if (*map) reset_linear(*map, deviation);
  }
  for (const auto& conv : {conv_q_, conv_k_, conv_v_}) {
    if (conv) conv->reset_parameters();
  }
  o_norm_->reset_parameters();
}

}  // namespace lineal
