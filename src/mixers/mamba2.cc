// Mamba-2: a state space with one decay per head, which makes it a linear attention.        (Mamba-2, 2024, eq. 6)
//   initial  S_0 = 0                                                            [N, K] per head
//   update   S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T                         A = -exp(A_log), one per head
//   output   y_t = S_t^T C_t + D x_t;  w (y silu(z)) / rms(y silu(z)), the norm per group
//   views    z, x, B, C, dt = W_in u;  x, B, C through a convolution and silu;  dt = softplus(dt + dt_bias), within
//            [time_step_least, time_step_most]
//   cost     O(T N (K + C)) time, N K state per head of K = expand * hidden_size / num_heads channels
// Head h reads the B and C of group floor(h G / H).
#include <ATen/ATen.h>

#include "core/error.h"
#include "mixers/linear.h"
#include "mixers/linear_recurrence.h"
#include "mixers/mamba.h"
#include "mixers/mixer.h"
#include "mixers/probe.h"
#include "mixers/short_conv.h"

namespace lineal {
namespace {

constexpr double kLeastDecay = 1, kMostDecay = 16;  // exp(A_log) at the start of training, uniform

struct Mamba2Config : Config {
  int64_t state_size = 64;
  int64_t expand = 2;
  int64_t num_heads = 8;
  int64_t n_groups = 1;
  int64_t conv_kernel = 4;
  int64_t chunk_size = 64;
  bool use_bias = false;
  bool use_conv_bias = true;
  double norm_eps = 1e-5;
  double time_step_least = 0;
  double time_step_most = 0;

  std::vector<Field> fields() override {
    return {
        {"state_size", &state_size, between(1, 4096), "numbers remembered per channel"},
        {"expand", &expand, between(1, 64), "channels per unit of hidden_size"},
        {"num_heads", &num_heads, size_range(), "heads, each with a decay of its own"},
        {"n_groups", &n_groups, size_range(), "groups of heads that share B and C"},
        {"conv_kernel", &conv_kernel, between(1, 64), "width of the short convolution"},
        {"chunk_size", &chunk_size, size_range(), "tokens computed at once; changes no result"},
        {"use_bias", &use_bias, {}, "what makes the views and the output has a bias", false},
        {"use_conv_bias", &use_conv_bias, {}, "the short convolution has a bias", true},
        {"norm_eps", &norm_eps, between(0, 1), "added to the mean square inside the norm", 1e-5},
        {"time_step_least", &time_step_least, at_least(0), "steps are at least this long", 0.0},
        {"time_step_most", &time_step_most, at_least(0), "steps are at most this long; 0: any", 0.0},
    };
  }
  void validate(const std::string& who) override {
    if (num_heads % n_groups != 0) {
      fail(who, ": n_groups is ", n_groups, ", expected a divisor of num_heads ", num_heads);
    }
    if (time_step_most > 0 && time_step_most < time_step_least) {
      fail(who, ": time_step_most is ", time_step_most, ", expected 0 or at least time_step_least ", time_step_least);
    }
  }
};

class Mamba2 : public Mixer {
 public:
  Mamba2(const Mamba2Config& config, int64_t D)
      : config_(config),
        D_(D),
        H_(config.num_heads),
        N_(config.state_size),
        G_(config.n_groups),
        inner_(config.expand * D),
        chunk_size_(config.chunk_size) {
    if (inner_ % H_ != 0) {
      fail("mamba2: num_heads is ", H_, ", expected a divisor of expand * hidden_size ", inner_);
    }
    const int64_t convolved = inner_ + 2 * G_ * N_;
    in_proj_ = register_module("in_proj", linear(D, inner_ + convolved + H_, config.use_bias));
    conv_ = register_module("conv1d", std::make_shared<ShortConv>(convolved, config.conv_kernel, config.use_conv_bias));
    dt_bias_ = register_parameter("dt_bias", at::empty({H_}));
    A_log_ = register_parameter("A_log", at::empty({H_}));
    skip_ = register_parameter("D", at::empty({H_}));
    norm_weight_ = register_module("norm", std::make_shared<torch::nn::Module>())
                       ->register_parameter("weight", at::empty({inner_}));
    out_proj_ = register_module("out_proj", linear(inner_, D, config.use_bias));
  }

  /// Parts: conv [B, conv_kernel - 1, expand * D + 2 n_groups N], ssm [B, H, N, K], position [B].
  State initial_state(int64_t B) const override {
    State state;
    state["conv"] = conv_->initial_state(B, state_options());
    state["ssm"] = at::zeros({B, H_, N_, inner_ / H_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& u, State& state, const Segments& segments) override {
    return mix(u, state, segments, nullptr);
  }
  Tensor step(const Tensor& u, State& pool, const Rows& rows) override { return mix(u, pool, {}, &rows); }

  void reset_parameters(double deviation) override {
    at::NoGradGuard no_grad;
    reset_linear(in_proj_, deviation);
    reset_linear(out_proj_, deviation);
    conv_->reset_parameters();
    reset_step(dt_bias_);
    A_log_.uniform_(kLeastDecay, kMostDecay).log_();
    skip_.fill_(1);
    norm_weight_.fill_(1);
  }

 private:
  Tensor mix(const Tensor& u, State& state, const Segments& segments, const Rows* rows) {
    const Dims dims = check_input("mamba2", u, state, D_, rows);
    const auto type = state_options().dtype().toScalarType();
    const auto views = in_proj_(u).split_with_sizes({inner_, inner_ + 2 * G_ * N_, H_}, 2);
    const auto parts = conv_->forward(views[1], state["conv"], segments, Activation::silu, rows)
                           .to(type)
                           .split_with_sizes({inner_, G_ * N_, G_ * N_}, 2);
    count(state, dims['T'], segments, rows);
    Tensor y;
    {
      const FullPrecision guard(u);
      const auto per_head = [&](const Tensor& B) { return B.unflatten(2, {G_, N_}).repeat_interleave(H_ / G_, 2); };
      const Tensor x = probed(probe, parts[0].unflatten(2, {H_, -1}));        // [B, T, H, K]
      const Tensor dt = limited(at::softplus(views[2].to(type) + dt_bias_));  // [B, T, H]
      const auto out = linear_recurrence({.q = per_head(parts[2]),
                                          .k = per_head(parts[1]),
                                          .v = x * dt.unsqueeze(3),
                                          .g = -A_log_.exp() * dt,
                                          .S = state["ssm"],
                                          .starts = segments.starts,
                                          .rows = rows},
                                         chunk_size_);
      state["ssm"] = out.S;
      if (probe) probe->outputs = out.o;
      y = (out.o + skip_.unsqueeze(1) * x).flatten(2) * at::silu(views[0].to(type));
      y = at::rms_norm(y.unflatten(2, {G_, -1}), {inner_ / G_}, {}, config_.norm_eps).flatten(2) * norm_weight_;
    }
    return out_proj_(y);
  }

  Tensor limited(const Tensor& dt) const {
    const double least = config_.time_step_least, most = config_.time_step_most;
    if (least == 0 && most == 0) return dt;
    return most > 0 ? dt.clamp(least, most) : dt.clamp_min(least);
  }

  Mamba2Config config_;
  int64_t D_, H_, N_, G_, inner_, chunk_size_;
  LinearMap in_proj_{nullptr}, out_proj_{nullptr};
  std::shared_ptr<ShortConv> conv_;
  Tensor dt_bias_, A_log_, skip_, norm_weight_;
};

}  // namespace

extern const MixerSpec mamba2_spec;
const MixerSpec mamba2_spec = {
    .name = "mamba2",
    .help = "state space with one decay per head (Mamba-2, 2024)",
    .config = make_config<Mamba2Config>,
    .make = make_mixer<Mamba2, Mamba2Config>,
};

}  // namespace lineal
