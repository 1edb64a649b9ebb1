// Attention: softmax over all past keys, the quadratic baseline.                  (Attention Is All You Need, 2017)
//   state    the rotated keys and the values of the document so far                 k, v [B, S, H_kv, K]
//   output   o_t = sum_j softmax_j(K^{-1/2} q_t . k_j) v_j,  j <= t in t's document, t - j < sliding_window when set
//   cost     O(T S K) time, 2 S K state per key head; with a window W O(T W K) and 2 W K
// Grouped queries: head h reads key head floor(h H_kv / H).    (GQA, 2023)    Window: Longformer, 2020; Mistral, 2023.
#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/probe.h"
#include "positions/rope.h"

namespace lineal {
namespace {

/// Queries that share one product with a window's keys: as many as the window, so that half of the scores count, but no
/// fewer than this, below which calls cost more than scores.
constexpr int64_t kLeastQueries = 16;

struct AttentionConfig : Config {
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 0;
  double rope_theta = 10000;
  int64_t sliding_window = 0;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "query heads"},
        {"num_key_value_heads", &num_key_value_heads, between(0, 1 << 20), "key and value heads; 0: as many"},
        {"rope_theta", &rope_theta, at_least(0), "rotary base; 0 for none"},
        {"sliding_window", &sliding_window, between(0, 1LL << 40), "tokens seen, the own included; 0: all"},
    };
  }
  void validate(const std::string& who) override {
    if (num_key_value_heads > 0 && num_attention_heads % num_key_value_heads != 0) {
      fail(who, ": num_key_value_heads is ", num_key_value_heads, ", expected a divisor of num_attention_heads ",
           num_attention_heads);
    }
  }
};

class Attention : public Mixer {
 public:
  Attention(const AttentionConfig& config, int64_t D)
      : D_(D),
        H_(config.num_attention_heads),
        H_kv_(config.num_key_value_heads > 0 ? config.num_key_value_heads : H_),
        K_(head_size("attention", D, H_)),
        window_(config.sliding_window),
        theta_(config.rope_theta) {
    if (theta_ > 0 && K_ % 2 != 0) fail("attention: head size is ", K_, ", rotary embedding needs an even one");
    q_proj_ = register_module("q_proj", linear(D, D));
    k_proj_ = register_module("k_proj", linear(D, H_kv_ * K_));
    v_proj_ = register_module("v_proj", linear(D, H_kv_ * K_));
    o_proj_ = register_module("o_proj", linear(D, D));
  }

  /// Parts: k, v [B, S, H_kv, K], newest last, and position [B], the tokens of the document read. A row's last
  /// position entries (with a window the last min(position, window - 1)) are its own, those before are zeros.
  State initial_state(int64_t B) const override {
    State state;
    state["k"] = at::zeros({B, 0, H_kv_, K_}, state_options());
    state["v"] = at::zeros({B, 0, H_kv_, K_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("attention", x, state, D_);
    const int64_t T = dims['T'];
    const auto type = state_options().dtype().toScalarType();
    const Tensor position = segments.positions(state["position"], T);  // [B, T]
    Tensor q = q_proj_(x).to(type).unflatten(2, {H_, K_});             // [B, T, H, K]
    Tensor k = k_proj_(x).to(type).unflatten(2, {H_kv_, K_});          // [B, T, H_kv, K]
    Tensor v = v_proj_(x).to(type).unflatten(2, {H_kv_, K_});
    if (theta_ > 0) {
      q = rope(q, position, theta_, RopePairs::halves);
      k = rope(k, position, theta_, RopePairs::halves);
    }
    const Tensor document = documents(state["position"], state["k"].size(1), T, segments);
    k = at::cat({state["k"], k}, 1);  // [B, S + T, H_kv, K]
    v = at::cat({state["v"], v}, 1);
    const int64_t size = window_ > 0 ? std::max(window_, kLeastQueries) : T;
    Tensor mixed = v, asked = k;
    if (probe) {  // a value for each query head, none of tokens read before
      const Tensor own = v.slice(1, v.size(1) - T).repeat_interleave(H_ / H_kv_, 2);
      mixed = at::constant_pad_nd(probed(probe, own), {0, 0, 0, 0, v.size(1) - T, 0});
      asked = k.repeat_interleave(H_ / H_kv_, 2);
    }
    std::vector<Tensor> parts;
    for (int64_t from = 0; from < T; from += size) {
      parts.push_back(attend(q, asked, mixed, document, from, std::min(from + size, T)));
    }
    const Tensor o = at::cat(parts, 1);  // [B, T, H, K]
    if (probe) probe->outputs = o;
    state["position"] = position.select(1, -1) + 1;
    keep(k, v, state, segments);
    return o_proj_(o.flatten(2));
  }

  void reset_parameters(double deviation) override {
    for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &o_proj_}) reset_linear(*map, deviation);
  }

 private:
  /// How many cached tokens each row still has to see, of those read.
  Tensor kept(const Tensor& position) const { return window_ > 0 ? position.clamp_max(window_ - 1) : position; }

  /// int64 [B, S + T]: the document that each cached and each new token belongs to, -1 for what is no row's own;
  /// undefined when all belong to one.
  Tensor documents(const Tensor& position, int64_t S, int64_t T, const Segments& segments) const {
    const Tensor own = at::arange(-S, 0, position.options()) >= -kept(position).unsqueeze(1);  // [B, S]
    if (segments.none() && own.all().item<bool>()) return {};
    return at::cat({at::where(own, 0, -1), segments.documents(position.size(0), T, position.device())}, 1);
  }

  /// q [B, T, H, K], k, v [B, S + T, H_kv, K] -> the answers to queries [from, to), [B, to - from, H, K].
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& document, int64_t from,
                int64_t to) const {
    const int64_t S = k.size(1) - q.size(1), n = to - from;
    const int64_t first = window_ > 0 ? std::max<int64_t>(0, S + from - window_ + 1) : 0;  // key the first query sees
    const int64_t before = S + from - first;                    // query i sees key j <= i + before
    const bool inside = window_ == 0 || before + n <= window_;  // no query has a key beyond its window
    const bool causal = !document.defined() && inside && before == 0;
    Tensor mask;  // bool [n, before + n] or [B, 1, n, before + n]
    if (!causal && (document.defined() || n > 1)) {
      mask = at::ones({n, before + n}, q.options().dtype(at::kBool)).tril(before);
      if (!inside) mask = mask.triu(before - window_ + 1);
      if (document.defined()) {
        const Tensor seen = document.slice(1, first, S + to), own = document.slice(1, S + from, S + to);
        mask = mask.logical_and(own.unsqueeze(2) == seen.unsqueeze(1)).unsqueeze(1);
      }
    }
    const auto heads = [](const Tensor& x, int64_t begin, int64_t end) {
      return x.slice(1, begin, end).transpose(1, 2);
    };
    return at::scaled_dot_product_attention(
               heads(q, from, to), heads(k, first, S + to), heads(v, first, S + to),
               mask.defined() ? std::optional<Tensor>(mask) : std::nullopt, /*dropout_p=*/0.0,
               /*is_causal=*/causal && n > 1, /*scale=*/std::nullopt, /*enable_gqa=*/k.size(2) != H_)
        .transpose(1, 2);
  }

  /// Leaves in the state what later tokens can still see.
  void keep(const Tensor& k, const Tensor& v, State& state, const Segments& segments) const {
    int64_t length = window_ > 0 ? std::min(k.size(1), window_ - 1) : k.size(1);
    Tensor own;
    if (!segments.none()) {
      const Tensor count = kept(state["position"]);
      length = count.max().item<int64_t>();
      own = at::arange(-length, 0, count.options()) >= -count.unsqueeze(1);  // [B, length]
    }
    const auto last = [&](const Tensor& x) {
      const Tensor y = x.slice(1, x.size(1) - length);
      return own.defined() ? at::where(own.unsqueeze(2).unsqueeze(3), y, 0) : own_storage(y);
    };
    state["k"] = last(k);
    state["v"] = last(v);
  }

  int64_t D_, H_, H_kv_, K_, window_;
  double theta_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
};

}  // namespace

extern const MixerSpec attention_spec;
const MixerSpec attention_spec = {
    .name = "attention",
    .help = "softmax over all past tokens, cost growing with the context (Attention Is All You Need, 2017)",
    .constant_state = false,
    .config = make_config<AttentionConfig>,
    .make = make_mixer<Attention, AttentionConfig>,
};

}  // namespace lineal
