// Mamba: a state space whose step, input and output depend on the token.        (Mamba, 2023, algorithm 2)
//   initial  h_0 = 0                                                            [D, N]
//   update   h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t                     per channel; A = -exp(A_log)
//   output   y_t = C_t . h_t + D u_t,  times silu(z_t)
//   views    u, z = W_in x;  u = silu(conv(u));  delta, B, C = W_x u;  delta = softplus(W_dt delta + b_dt)
//   cost     O(T D N) time, D N state; D = expand * the model's width
#include "mixers/mamba.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/state.h"
#include "mixers/chunks.h"
#include "mixers/derived.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/short_conv.h"

namespace lineal {
namespace {

Dims check(const Selective& in, const Tensor& h) {
  Dims dims("selective_scan");
  dims.check(in.u, "BTD", "u");
  dims.check(in.delta, "BTD", "delta");
  dims.check(in.A, "DN", "A");
  dims.check(in.B, "BTGN", "B");
  dims.check(in.C, "BTGN", "C");
  dims.check(h, "BDN", "h");
  if (dims['D'] % dims['G'] != 0) {
    fail("selective_scan: B has ", dims['G'], " groups, expected a divisor of the ", dims['D'], " channels");
  }
  return dims;
}

/// h_t = a_t h_{t-1} + x_t without autograd; a, x [B, T, M] with T = n C.
Tensor scan(const Tensor& a, const Tensor& x, const Tensor& h, int64_t C) {
  const int64_t B = a.size(0), n = a.size(1) / C, M = a.size(2);
  const Tensor decay = a.view({B, n, C, M});
  Tensor y = x.clone().view({B, n, C, M});
  for (int64_t t = 1; t < C; ++t) y.select(2, t).addcmul_(decay.select(2, t), y.select(2, t - 1));
  if (n == 1) return y.view({B, C, M}).addcmul_(decay.squeeze(1).cumprod(1), h.unsqueeze(1));
  const Tensor product = decay.cumprod(2);
  const Tensor start = at::empty({B, n, M}, x.options());
  start.select(1, 0).copy_(h);
  for (int64_t i = 1; i < n; ++i) {
    Tensor next = start.select(1, i);
    at::addcmul_out(next, y.select(1, i - 1).select(1, C - 1), product.select(1, i - 1).select(1, C - 1),
                    start.select(1, i - 1));
  }
  return y.addcmul_(product, start.unsqueeze(2)).view({B, n * C, M});
}

class LinearScan : public torch::autograd::Function<LinearScan> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& a, const Tensor& x, const Tensor& h,
                        int64_t C) {
    const Tensor y = scan(a, x, h, C);
    context->save_for_backward({a, h, y});
    context->saved_data["C"] = C;
    return y;
  }

  /// With g_t the whole gradient of h_t: g_t = dy_t + a_{t+1} g_{t+1}, dx_t = g_t, da_t = g_t h_{t-1}, dh_0 = a_1 g_1.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &a = saved[0], &h = saved[1], &y = saved[2];
    const int64_t T = a.size(1);
    const Tensor reversed = at::cat({at::zeros_like(h).unsqueeze(1), a.slice(1, 1).flip(1)}, 1);
    const Tensor g = scan(reversed, gradients[0].flip(1), at::zeros_like(h), context->saved_data["C"].toInt()).flip(1);
    const Tensor before = at::cat({h.unsqueeze(1), y.slice(1, 0, T - 1)}, 1);
    return {g * before, g, a.select(1, 0) * g.select(1, 0), Tensor()};
  }
};

}  // namespace

Tensor linear_scan(const Tensor& a, const Tensor& x, const Tensor& h, int64_t chunk_size) {
  const int64_t B = a.size(0), T = a.size(1), C = std::min(chunk_size, T), padding = (C - T % C) % C;
  const auto flat = [&](const Tensor& tokens) {
    const Tensor flattened = tokens.reshape({B, T, -1});
    return padding == 0 ? flattened : at::constant_pad_nd(flattened, {0, 0, 0, padding});
  };
  const Tensor y = LinearScan::apply(flat(a), flat(x), h.reshape({B, -1}), C);
  return y.slice(1, 0, T).reshape(x.sizes());
}

std::pair<Tensor, Tensor> selective_scan_reference(const Selective& in, Tensor h, const Segments& segments) {
  const Dims dims = check(in, h);
  const int64_t per_group = dims['D'] / dims['G'];
  std::vector<Tensor> y;
  for (int64_t t = 0; t < dims['T']; ++t) {
    const Tensor delta = in.delta.select(1, t).unsqueeze(2), u = in.u.select(1, t).unsqueeze(2);  // [B, D, 1]
    const Tensor B = in.B.select(1, t).repeat_interleave(per_group, 1);                           // [B, D, N]
    const Tensor C = in.C.select(1, t).repeat_interleave(per_group, 1);
    h = (delta * in.A).exp() * restart(h, segments, t) + delta * B * u;
    y.push_back((C * h).sum(2));  // [B, D]
  }
  return {at::stack(y, 1), h};
}

std::pair<Tensor, Tensor> selective_scan(const Selective& in, const Tensor& h, int64_t chunk_size,
                                         const Segments& segments) {
  const Dims dims = check(in, h);
  const int64_t G = dims['G'], N = dims['N'];
  const auto grouped = [&](const Tensor& x) { return x.unflatten(2, {G, dims['D'] / G}); };  // [B, T, G, D/G, ...]
  Tensor a = (in.delta.unsqueeze(3) * in.A).exp();                                           // [B, T, D, N]
  if (!segments.none()) a = a * segments.starts.logical_not().to(a.scalar_type()).unsqueeze(2).unsqueeze(3);
  const Tensor x = grouped(in.delta * in.u).unsqueeze(4) * in.B.unsqueeze(3);  // [B, T, G, D/G, N]
  const Tensor all = linear_scan(a, x.view({dims['B'], dims['T'], dims['D'], N}), h, chunk_size);
  const Tensor y = at::matmul(grouped(all), in.C.unsqueeze(4)).squeeze(4).flatten(2);  // [B, T, D]
  return {y, own_storage(all.select(1, -1))};
}

kernels::ScanOutput around_scan(const kernels::ScanInput& in, const Scan& scan) {
  const auto wide = [&](const Tensor& x) { return x.to(in.A.scalar_type()); };
  Tensor step = wide(in.delta);
  if (in.bias.defined()) step = step + in.bias;
  if (in.softplus) step = at::softplus(step);
  const Tensor u = wide(in.u);
  auto [y, h] = scan({u, step, in.A, wide(in.B), wide(in.C)}, in.h, {in.starts});
  if (in.D.defined()) y = y + in.D * u;
  if (in.z.defined()) y = y * at::silu(wide(in.z));
  return {y.to(in.u.scalar_type()), h};
}

void reset_step(Tensor& bias) {
  constexpr double kLeast = 1e-3, kMost = 1e-1;
  at::NoGradGuard no_grad;
  const Tensor step = at::empty_like(bias).uniform_(std::log(kLeast), std::log(kMost)).exp();
  bias.copy_(step + step.neg().expm1().neg().log());  // softplus of it is the step
}

namespace {

struct MambaConfig : Config {
  int64_t state_size = 16;
  int64_t expand = 2;
  int64_t conv_kernel = 4;
  int64_t time_step_rank = 0;
  int64_t chunk_size = 32;
  bool use_bias = false;
  bool use_conv_bias = true;

  std::vector<Field> fields() override {
    return {
        {"state_size", &state_size, between(1, 4096), "numbers remembered per channel"},
        {"expand", &expand, between(1, 64), "channels per unit of hidden_size"},
        {"conv_kernel", &conv_kernel, between(1, 64), "width of the short convolution"},
        {"time_step_rank", &time_step_rank, between(0, 1 << 20), "rank of the step's projection; 0: hidden_size / 16"},
        {"chunk_size", &chunk_size, size_range(), "tokens computed in a row; changes no result"},
        {"use_bias", &use_bias, {}, "what makes the views and the output has a bias", false},
        {"use_conv_bias", &use_conv_bias, {}, "the short convolution has a bias", true},
    };
  }
};

class Mamba : public Mixer {
 public:
  Mamba(const MambaConfig& config, int64_t D)
      : config_(config),
        D_(D),
        inner_(config.expand * D),
        rank_(config.time_step_rank > 0 ? config.time_step_rank : (D + 15) / 16) {
    const int64_t N = config.state_size;
    in_proj_ = register_module("in_proj", linear(D, 2 * inner_, config.use_bias));
    conv_ = register_module("conv1d", std::make_shared<ShortConv>(inner_, config.conv_kernel, config.use_conv_bias));
    x_proj_ = register_module("x_proj", linear(inner_, rank_ + 2 * N));
    dt_proj_ = register_module("dt_proj", linear(rank_, inner_, /*bias=*/true));
    A_log_ = register_parameter("A_log", at::empty({inner_, N}));
    skip_ = register_parameter("D", at::empty({inner_}));
    out_proj_ = register_module("out_proj", linear(inner_, D, config.use_bias));
  }

  /// Parts: conv [B, conv_kernel - 1, expand * D], ssm [B, expand * D, N], position [B], tokens of the document read.
  State initial_state(int64_t B) const override {
    State state;
    state["conv"] = conv_->initial_state(B, state_options());
    state["ssm"] = at::zeros({B, inner_, config_.state_size}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    return mix(x, state, segments, nullptr);
  }
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override { return mix(x, pool, {}, &rows); }

  void reset_parameters(double deviation) override {
    at::NoGradGuard no_grad;
    for (auto* map : {&in_proj_, &x_proj_, &out_proj_}) reset_linear(*map, deviation);
    conv_->reset_parameters();
    const double bound = 1 / std::sqrt(static_cast<double>(rank_));
    dt_proj_->weight.uniform_(-bound, bound);
    reset_step(dt_proj_->bias);
    A_log_.copy_(at::arange(1, config_.state_size + 1, A_log_.options().requires_grad(false)).log().expand_as(A_log_));
    skip_.fill_(1);
  }

 private:
  Tensor mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
    const Dims dims = check_input("mamba", x, state, D_, rows);
    const auto views = in_proj_(x).chunk(2, 2);  // u, z [B, T, expand * D]
    const Tensor u = conv_->forward(views[0], state["conv"], segments, Activation::silu, rows);
    const auto parts = x_proj_(u).split_with_sizes({rank_, config_.state_size, config_.state_size}, 2);
    const Tensor step = at::linear(parts[0], dt_proj_->weight);  // its bias is added in full precision
    count(state, dims['T'], segments, rows);
    Tensor y;
    {
      const FullPrecision guard(x);
      const auto chunked = [&](const kernels::ScanInput& in) {
        return around_scan(in, [&](const Selective& core, const Tensor& h, const Segments& documents) {
          return selective_scan(core, h, config_.chunk_size, documents);
        });
      };
      const auto out = kernels::use(kernels::selective_scan, chunked,
                                    {.u = u,
                                     .delta = step,
                                     .A = rates_(A_log_, [](const Tensor& A_log) { return -A_log.exp(); }),
                                     .B = parts[1].unsqueeze(2),
                                     .C = parts[2].unsqueeze(2),
                                     .D = skip_,
                                     .z = views[1],
                                     .bias = dt_proj_->bias,
                                     .softplus = true,
                                     .h = state["ssm"],
                                     .starts = segments.starts,
                                     .rows = rows});
      y = out.y;
      state["ssm"] = out.h;
    }
    return out_proj_(y);
  }

  MambaConfig config_;
  int64_t D_, inner_, rank_;
  LinearMap in_proj_{nullptr}, x_proj_{nullptr}, dt_proj_{nullptr}, out_proj_{nullptr};
  std::shared_ptr<ShortConv> conv_;
  Tensor A_log_, skip_;
  Derived rates_;
};

}  // namespace

extern const MixerSpec mamba_spec;
const MixerSpec mamba_spec = {
    .name = "mamba",
    .help = "selective state space (Mamba, 2023)",
    .config = make_config<MambaConfig>,
    .make = make_mixer<Mamba, MambaConfig>,
};

}  // namespace lineal
