// VQ attention: softmax attention over keys that are replaced by their nearest codewords, in linear time.
//                                                                                       (Transformer-VQ, Lingle, 2023)
//   codes    m_t = argmin_m |k_t - c_m|^2, khat_t = c_{m_t}                              c [M, K] per head
//   initial  no tokens, n_m = 0
//   update   tokens that leave the window: n_m = #{j : m_j = m},  mean_m = the mean of their v_j
//   output   o_t = softmax over the recent j <= t and the codes m with n_m > 0 of
//              (q_t + u) . khat_j + [t - j <= window] (q_t + w) . r_{t-j}                weighing v_j
//              (q_t + u) . c_m + log n_m                                                 weighing mean_m
//            y_t = W_o (o_t . silu(W_g x_t)),  v = silu(W_v x)
//   cost     O(T (window + C + M) (K + V)) time, (window + C) (K + V) + M V state per head
// q and k have RMS 1 per head; they, r_d = W_r sinusoid(d), u and w are divided by tau^{1/2} each. Blocks of C tokens
// are counted from the document's start; recent are the block's own tokens and those up to `window` before its first:
// as a code's score is its tokens' common score and n_m of them, outputs do not depend on C, and equal quadratic
// attention over khat. Without aggregate, recent are the last `window` tokens and t, and nothing older is seen.
//
// In training mode gradients of khat_j go to k_j as they are (straight-through), from tokens that have j among their
// recent ones; in evaluation mode there are none, as khat is piecewise constant. The codebook follows the keys:
//   c_m = s_m / max(a_m, 0.01),  s_m <- gamma s_m + (1 - gamma) sum of the step's keys of code m,  a_m of their number
// and keys are drawn to it by the loss |k_t - khat_t|^2, a mean over tokens and sum over heads, times `commitment`;
// padding counts for 0 in all of these. Codes that fall out of use start again as a key of the step. (Jukebox, 2020,
// section 3.1)
#include "mixers/vq_attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>

#include "core/error.h"
#include "mixers/derived.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/probe.h"
#include "mixers/rms_norm.h"

namespace lineal {
namespace {

constexpr double kEps = 1e-6;         // of all norms here
constexpr double kLeastCount = 0.01;  // of a code, where it divides

struct VqConfig : Config {
  int64_t num_attention_heads = 4;
  int64_t key_size = 0;
  int64_t value_size = 0;
  int64_t num_codes = 512;
  int64_t window = 512;
  int64_t chunk_size = 128;
  bool aggregate = true;
  bool use_gate = true;
  bool input_norm = false;
  double tau = 0;
  double sinusoid_theta = 100000;
  double commitment = 1e-4;
  double codebook_decay = 0.99;
  std::string codebook_start = "random";
  double restart_below = 0.01;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "heads, each with a codebook of its own"},
        {"key_size", &key_size, between(0, 1 << 20), "size of a key; 0: hidden_size / num_attention_heads"},
        {"value_size", &value_size, between(0, 1 << 20), "size of a value; 0: hidden_size / num_attention_heads"},
        {"num_codes", &num_codes, size_range(), "codewords that keys are replaced by"},
        {"window", &window, size_range(), "tokens back whose distance counts; older ones are summed by code"},
        {"chunk_size", &chunk_size, size_range(),
         "tokens of a block, after which older ones are summed; changes no output"},
        {"aggregate", &aggregate, {}, "see what is older than the window"},
        {"use_gate", &use_gate, {}, "multiply the output by silu of a projection"},
        {"input_norm", &input_norm, {}, "an RMS norm with weight and bias in front, as the published layer has"},
        {"tau", &tau, between(0, 1e6), "what scores are divided by; 0: the root of key_size"},
        {"sinusoid_theta", &sinusoid_theta, between(1, 1e12), "base of the wavelengths that encode distance"},
        {"commitment", &commitment, between(0, 1e6), "weight of the loss that draws keys to their codewords"},
        {"codebook_decay", &codebook_decay, between(0, 1), "of the codebook's moving averages, per training step"},
        {"codebook_start", &codebook_start, one_of({"random", "keys"}),
         "codewords as normal numbers of the size of keys, or, after the first training step, keys of that step"},
        {"restart_below", &restart_below, between(0, 1),
         "codes used less than this share of the average start again as a key; 0: none does"},
    };
  }
};

/// [first n, D] rows of sines then cosines of distances 0 to n - 1.
Tensor sinusoids(int64_t n, int64_t D, double theta, at::TensorOptions options) {
  const auto wide = options.dtype(at::kDouble);
  const Tensor rate = at::pow(theta, at::arange(D / 2, wide) * (-2.0 / static_cast<double>(D)));
  const Tensor angle = at::arange(n, wide).unsqueeze(1) * rate;
  return at::cat({angle.sin(), angle.cos()}, 1).to(options);
}

Tensor nearest_code_reference(const Tensor& k, const Tensor& codebook) {
  const at::NoGradGuard no_grad;
  const Tensor squares = codebook.square().sum(2);  // [H, M]
  std::vector<Tensor> codes;
  for (int64_t from = 0; from < k.size(1); from += 128) {
    const Tensor dots = at::einsum("bthk,hmk->bthm", {k.slice(1, from, from + 128), codebook});
    codes.push_back((squares - 2 * dots).argmin(3));
  }
  return at::cat(codes, 1);
}

/// A call in pieces within which no row begins a block.
class Pieces {
 public:
  explicit Pieces(const kernels::VqInput& in) : in_(in), B_(in.q.size(0)), M_(in.codebook.size(1)) {
    W_ = in.past_k.size(1);
    k_ = in.past_k, v_ = in.past_v, code_ = in.past_code, count_ = in.count, mean_ = in.mean;
  }

  kernels::VqOutput run() {
    const int64_t T = in_.q.size(1);
    const Tensor places = Segments{in_.starts}.positions(in_.position, T);  // [B, T]
    const Tensor begins = (places.remainder(in_.block) == 0).any(0).cpu().contiguous();
    std::vector<Tensor> o;
    for (int64_t from = 0, to; from < T; from = to) {
      to = from + 1;
      while (to < T && !begins.const_data_ptr<bool>()[to]) ++to;
      o.push_back(piece(from, to, places.select(1, from)));
    }
    return {at::cat(o, 1), k_, v_, code_, count_, mean_};
  }

 private:
  /// The place of the first token that is recent when `place` is about to be read.
  Tensor first_recent(const Tensor& place) const {
    const int64_t window = in_.r.size(0) - 1;
    const Tensor seen_from = count_.defined() ? place - place.remainder(in_.block) : place;
    return (seen_from - window).clamp_min(0);
  }
  static Tensor column(const Tensor& x) { return x.view({-1, 1, 1, 1}); }  // [B] -> [B, 1, 1, 1]

  Tensor piece(int64_t from, int64_t to, const Tensor& place) {
    const int64_t n = to - from, window = in_.r.size(0) - 1;
    const Tensor fresh = column(place == 0);
    k_ = at::cat({at::where(fresh, 0, k_), in_.k.slice(1, from, to)}, 1);
    v_ = at::cat({at::where(fresh, 0, v_), in_.v.slice(1, from, to)}, 1);
    code_ = at::cat({at::where(fresh.squeeze(3), M_, code_), in_.code.slice(1, from, to)}, 1);  // [B, W + n, H]

    const auto whole = place.options();
    const Tensor distance = at::arange(W_, W_ + n, whole).unsqueeze(1) - at::arange(W_ + n, whole);  // [n, W + n]
    const Tensor reach = (place - first_recent(place)).view({B_, 1, 1}) + at::arange(n, whole).unsqueeze(1);
    Tensor seen = distance >= 0;
    if (!count_.defined()) seen = seen.logical_and(distance <= window);
    seen = seen.logical_and(distance <= reach).unsqueeze(1);  // [B, 1, n, W + n]

    const Tensor q = in_.q.slice(1, from, to);
    const Tensor by_distance = at::einsum("bihk,dhk->bhid", {in_.p.slice(1, from, to), in_.r});
    const Tensor index = distance.clamp(0, window).expand({B_, q.size(2), n, W_ + n});
    const Tensor near = distance <= window;
    Tensor scores = at::einsum("bihk,bjhk->bhij", {q, k_}) + at::where(near, by_distance.gather(3, index), 0);
    scores = at::where(seen, scores, -INFINITY);
    if (count_.defined()) {
      if (fresh.any().item<bool>()) {
        count_ = at::where(fresh.squeeze(3), 0, count_);
        mean_ = at::where(fresh, 0, mean_);
      }
      const Tensor of_codes = at::einsum("bihk,hmk->bhim", {q, in_.codebook});
      scores = at::cat({scores, of_codes + count_.to(q.scalar_type()).log().unsqueeze(2)}, 3);
    }
    const Tensor weights = scores.softmax(3);
    Tensor o = at::einsum("bhij,bjhv->bihv", {weights.slice(3, 0, W_ + n), v_});
    if (count_.defined()) o = o + at::einsum("bhim,bhmv->bihv", {weights.slice(3, W_ + n), mean_});
    leave(place, n);
    return o;
  }

  /// What n tokens from `place` on push out of the recent ones goes to its code; the others stay.
  void leave(const Tensor& place, int64_t n) {
    const Tensor kept = place + n - first_recent(place + n);                                // [B]
    const Tensor age = at::arange(W_ + n, 0, -1, place.options()).view({1, W_ + n, 1, 1});  // the newest's is 1
    const Tensor stays = age <= column(kept);
    if (count_.defined()) {
      const Tensor code = at::where(stays.logical_not().squeeze(3), code_, M_).transpose(1, 2);
      const auto sum = [&](const Tensor& zeros, const Tensor& index, const Tensor& x) {
        return zeros.scatter_add(2, index, x).slice(2, 0, M_);
      };
      const int64_t H = code.size(1), V = v_.size(3);
      const Tensor added = sum(at::zeros({B_, H, M_ + 1}, count_.options()), code, at::ones_like(code));
      if (added.any().item<bool>()) {
        const Tensor total = sum(at::zeros({B_, H, M_ + 1, V}, v_.options()),
                                 code.unsqueeze(3).expand({B_, H, W_ + n, V}), v_.transpose(1, 2));
        const Tensor now = count_ + added, divisor = now.clamp_min(1).to(v_.scalar_type()).unsqueeze(3);
        mean_ = at::where(added.unsqueeze(3) > 0, count_.unsqueeze(3) / divisor * mean_ + total / divisor, mean_);
        count_ = now;
      }
    }
    const auto last = [&](const Tensor& x) { return x.slice(1, n); };
    k_ = at::where(last(stays), last(k_), 0);
    v_ = at::where(last(stays), last(v_), 0);
    code_ = at::where(last(stays).squeeze(3), last(code_), M_);
  }

  const kernels::VqInput& in_;
  int64_t B_, M_, W_;
  Tensor k_, v_, code_, count_, mean_;
};

kernels::VqOutput vq_attention_reference(const kernels::VqInput& in) { return Pieces(in).run(); }

}  // namespace

Tensor nearest_code(const Tensor& k, const Tensor& codebook) {
  return kernels::use(kernels::nearest_code, nearest_code_reference, k, codebook);
}

Tensor codewords(const Tensor& codebook, const Tensor& code) {
  const int64_t M = codebook.size(1);
  const Tensor first = at::arange(codebook.size(0), code.options()) * M;  // row of each head's first codeword
  return codebook.flatten(0, 1).index_select(0, (code + first).flatten()).unflatten(0, code.sizes());
}

kernels::VqOutput vq_attention(const kernels::VqInput& in) {
  return kernels::use(kernels::vq_attention, vq_attention_reference, in);
}

namespace {

class VqAttention : public Mixer {
 public:
  VqAttention(const VqConfig& config, int64_t D)
      : config_(config),
        D_(D),
        H_(config.num_attention_heads),
        K_(config.key_size > 0 ? config.key_size : head_size("vq_attention", D, H_)),
        V_(config.value_size > 0 ? config.value_size : head_size("vq_attention", D, H_)),
        M_(config.num_codes),
        scale_(std::pow(config.tau > 0 ? config.tau : std::sqrt(static_cast<double>(K_)), -0.5)) {
    if (D % 2 != 0) fail("vq_attention: hidden_size is ", D, ", sines and cosines of distances need an even one");
    if (config.input_norm) {
      norm_ = register_module("input_norm", std::make_shared<RmsNorm>(D, kEps));
      norm_bias_ = norm_->register_parameter("bias", at::empty({D}));
    }
    q_proj_ = register_module("q_proj", linear(D, H_ * K_));
    k_proj_ = register_module("k_proj", linear(D, H_ * K_));
    v_proj_ = register_module("v_proj", linear(D, H_ * V_));
    if (config.use_gate) g_proj_ = register_module("g_proj", linear(D, H_ * V_));
    r_proj_ = register_module("r_proj", linear(D, H_ * K_));
    o_proj_ = register_module("o_proj", linear(H_ * V_, D));
    content_bias_ = register_parameter("content_bias", at::empty({H_, K_}));
    position_bias_ = register_parameter("position_bias", at::empty({H_, K_}));
    code_sum_ = register_buffer("code_sum", at::empty({H_, M_, K_}));
    code_count_ = register_buffer("code_count", at::empty({H_, M_}));
    step_sum_ = register_buffer("step_sum", at::empty({H_, M_, K_}));
    step_count_ = register_buffer("step_count", at::empty({H_, M_}));
    step_keys_ = register_buffer("step_keys", at::empty({H_, M_, K_}));
  }

  /// Parts: the recent tokens, k [B, W, H, K] (codewords), v [B, W, H, V] and code int64 [B, W, H], newest last, those
  /// before the first as zeros of code M; what is older, count int64 [B, H, M] and mean [B, H, M, V]; position [B].
  State initial_state(int64_t B) const override {
    const auto whole = state_options().dtype(at::kLong);
    const int64_t W = config_.window + (config_.aggregate ? config_.chunk_size - 1 : 0);
    State state;
    state["k"] = at::zeros({B, W, H_, K_}, state_options());
    state["v"] = at::zeros({B, W, H_, V_}, state_options());
    state["code"] = at::full({B, W, H_}, M_, whole);
    if (config_.aggregate) {
      state["count"] = at::zeros({B, H_, M_}, whole);
      state["mean"] = at::zeros({B, H_, M_, V_}, state_options());
    }
    state["position"] = at::zeros({B}, whole);
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("vq_attention", x, state, D_);
    const auto type = state_options().dtype().toScalarType();
    const Tensor normed = norm_ ? norm_->forward(x) + norm_bias_ : x;
    const Tensor q = unit(q_proj_(normed), type), k = unit(k_proj_(normed), type);  // [B, T, H, K]
    const Tensor v = probed(probe, at::silu(v_proj_(normed).to(type)).unflatten(2, {H_, V_}));
    Tensor y;
    {
      const FullPrecision guard(x);
      const Tensor codebook = code_sum_ / code_count_.clamp_min(kLeastCount).unsqueeze(2);
      const Tensor code = nearest_code(k.detach(), codebook);
      Tensor khat = codewords(codebook, code);
      losses.clear();
      measured.clear();
      const Seen seen = of_text(k, khat, code, segments);
      if (is_training()) learn(seen);
      if (measure) observe(seen);
      if (is_training()) khat = khat + (k - k.detach());
      const Tensor r = distances_(r_proj_->weight, [&](const Tensor& W) {
        if (!sinusoids_.defined() || sinusoids_.options().dtype() != W.dtype() || sinusoids_.device() != W.device()) {
          sinusoids_ = sinusoids(config_.window + 1, D_, config_.sinusoid_theta, W.options().requires_grad(false));
        }
        return (at::linear(sinusoids_, W) * scale_).unflatten(1, {H_, K_});
      });
      kernels::VqInput in{.q = q + scale_ * content_bias_, .p = q + scale_ * position_bias_};
      in.k = khat, in.v = v, in.code = code, in.codebook = codebook, in.r = r, in.block = config_.chunk_size;
      in.position = state["position"], in.starts = segments.starts;
      in.past_k = state["k"], in.past_v = state["v"], in.past_code = state["code"];
      if (config_.aggregate) in.count = state["count"], in.mean = state["mean"];
      const auto out = vq_attention(in);
      state["k"] = out.past_k, state["v"] = out.past_v, state["code"] = out.past_code;
      if (config_.aggregate) state["count"] = out.count, state["mean"] = out.mean;
      if (probe) probe->outputs = out.o;
      y = out.o.flatten(2);
    }
    count(state, dims['T'], segments, nullptr);
    if (g_proj_) y = y * at::silu(g_proj_(normed));
    return o_proj_(y);
  }

  void reset_parameters(double deviation) override {
    for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &g_proj_, &r_proj_, &o_proj_}) {
      if (*map) reset_linear(*map, deviation);
    }
    at::NoGradGuard no_grad;
    if (norm_) norm_->reset_parameters(), norm_bias_.zero_();
    content_bias_.zero_();
    position_bias_.zero_();
    const double least = config_.codebook_start == "keys" ? 0 : 1;  // no count at all: the first step replaces them
    code_count_.fill_(least);
    code_sum_.normal_(0, scale_).mul_(std::max(least, kLeastCount));
    for (Tensor* sum : {&step_sum_, &step_count_, &step_keys_}) sum->zero_();
  }

  /// The codebook moves by what the last step's calls have seen of keys.
  void begin_step(int64_t /*step*/) override {
    at::NoGradGuard no_grad;
    const Tensor seen = step_count_.sum(1, /*keepdim=*/true);  // [H, 1], tokens
    if (seen.eq(0).all().item<bool>()) return;
    const bool first = code_count_.eq(0).all().item<bool>();
    const double gamma = config_.codebook_decay;
    code_sum_.mul_(gamma).add_(step_sum_, 1 - gamma);
    code_count_.mul_(gamma).add_(step_count_, 1 - gamma);
    const Tensor average = first ? step_count_.mean(1, true) : code_count_.mean(1, true);  // [H, 1]
    Tensor restarts = first ? at::ones_like(code_count_, at::kBool) : code_count_ < config_.restart_below * average;
    restarts = restarts.logical_and(at::arange(M_, seen.options()) < seen);
    code_count_.copy_(at::where(restarts, average.clamp_min(kLeastCount), code_count_));
    code_sum_.copy_(at::where(restarts.unsqueeze(2), step_keys_ * code_count_.unsqueeze(2), code_sum_));
    for (Tensor* sum : {&step_sum_, &step_count_, &step_keys_}) sum->zero_();
  }

 private:
  /// [B, T, H K] -> [B, T, H, K] of RMS tau^{-1/2} per head.
  Tensor unit(const Tensor& x, at::ScalarType type) const {
    const Tensor weight = at::full({K_}, scale_, state_options());
    return rms_norm(x.to(type).unflatten(2, {H_, K_}).contiguous(), weight, kEps);
  }

  /// A call's tokens of text, n of them in all rows.
  struct Seen {
    Tensor k, khat;  // [n, H, K]
    Tensor code;     // [n, H]
    int64_t tokens;  // of the call, padding too
  };
  static Seen of_text(const Tensor& k, const Tensor& khat, const Tensor& code, const Segments& segments) {
    Seen seen{k.flatten(0, 1), khat.flatten(0, 1), code.flatten(0, 1), code.size(0) * code.size(1)};
    if (!segments.padding.defined()) return seen;
    const Tensor index = segments.padding.to(k.device()).flatten().logical_not().nonzero().squeeze(1);
    for (Tensor* x : {&seen.k, &seen.khat, &seen.code}) *x = x->index_select(0, index);
    return seen;
  }

  /// Leaves the commitment loss, and of a call that is differentiated (so that one that runs twice counts once) the
  /// sums for the next step's codebook.
  void learn(const Seen& seen) {
    losses.emplace_back("commitment", config_.commitment * commitment(seen));
    const auto [places, tokens] = sample(seen.k.size(0));
    if (!at::GradMode::is_enabled()) return;
    at::NoGradGuard no_grad;
    const Tensor keys = seen.k.detach().transpose(0, 1), of = seen.code.transpose(0, 1);  // [H, n, K], [H, n]
    step_keys_.index_copy_(1, places.to(keys.device()), keys.index_select(1, tokens.to(keys.device())));
    step_sum_.scatter_add_(1, of.unsqueeze(2).expand_as(keys), keys);
    step_count_.scatter_add_(1, of, at::ones_like(of, step_count_.options()));
  }

  /// Places of step_keys that the next n tokens take and which of these, int64 [*]: all tokens of a step are as likely
  /// there.                                                      (Random sampling with a reservoir, 1985, algorithm R)
  std::pair<Tensor, Tensor> sample(int64_t n) const {
    const Tensor draw = at::rand({n}, at::kDouble);
    const auto before = static_cast<int64_t>(step_count_[0].sum(at::kDouble).item<double>());
    std::map<int64_t, int64_t> kept;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t read = before + i;
      const double drawn = draw.const_data_ptr<double>()[i] * static_cast<double>(read + 1);
      const auto place = read < M_ ? read : static_cast<int64_t>(drawn);
      if (place < M_) kept[place] = i;
    }
    std::vector<int64_t> places, tokens;
    for (const auto& [place, token] : kept) places.push_back(place), tokens.push_back(token);
    return {at::tensor(places, at::kLong), at::tensor(tokens, at::kLong)};
  }

  static Tensor commitment(const Seen& seen) {
    return (seen.k - seen.khat).square().sum() / static_cast<double>(seen.tokens);
  }

  void observe(const Seen& seen) {
    at::NoGradGuard no_grad;
    const Tensor of = seen.code.transpose(0, 1);  // [H, n]
    const Tensor share = at::zeros_like(code_count_).scatter_add(1, of, at::ones_like(of, code_count_.options())) /
                         std::max<int64_t>(of.size(1), 1);
    const Tensor entropy = -(share * share.clamp_min(1e-30).log()).sum(1);
    measured = {{"commitment", commitment(seen)},
                {"codes_used", share.gt(0).sum(1).to(at::kDouble).mean()},
                {"code_perplexity", entropy.exp().mean()}};
  }

  VqConfig config_;
  int64_t D_, H_, K_, V_, M_;
  double scale_;
  std::shared_ptr<RmsNorm> norm_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, g_proj_{nullptr}, r_proj_{nullptr}, o_proj_{nullptr};
  Tensor norm_bias_, content_bias_, position_bias_;
  Tensor code_sum_, code_count_;              // moving averages over steps
  Tensor step_sum_, step_count_, step_keys_;  // of this step's keys: sums by code, their numbers, a sample
  Tensor sinusoids_;                          // of distances, [window + 1, D]
  Derived distances_;
};

}  // namespace

extern const MixerSpec vq_attention_spec;
const MixerSpec vq_attention_spec = {
    .name = "vq_attention",
    .help = "softmax attention over keys quantised by a learned codebook (Transformer-VQ, 2023)",
    .config = make_config<VqConfig>,
    .make = make_mixer<VqAttention, VqConfig>,
};

}  // namespace lineal
