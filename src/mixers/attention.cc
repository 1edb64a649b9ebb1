// Attention: softmax over all past keys, the quadratic baseline.                  (Attention Is All You Need, 2017)
//   state    keys and values of the document so far                                 k, v [B, S, H_kv, K]
//   output   o_t = sum_j softmax_j(score(q_t, k_j)) v_j,  j <= t in t's document, t - j < sliding_window when set
//   score    K^{-1/2} q_t . k_j (or scale for K^{-1/2}), both turned by their places; or what src/positions/ makes of
//            both places
//   cost     O(T S K) time, 2 S K state per key head; with a window W O(T W K) and 2 W K
// Grouped queries: head h reads key head floor(h H_kv / H).    (GQA, 2023)    Window: Longformer, 2020; Mistral, 2023.
// For texts longer than the L_0 tokens trained on, p_t a token's place in its document:
//   log_n     q_t max(1, ln(p_t + 1) / ln L_0)                                                          (Su, 2021)
//   key_norm  k_j sqrt(K) / |k_j|, before it is turned                                                  (Su, 2023)
//   sinks     a document's first S tokens are seen beside the window W, from place min(p_t, S + W - 1): that of a query
//             after S + W - 1 keys                           (Efficient Streaming Models with Attention Sinks, 2023)
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/probe.h"
#include "positions/position.h"

namespace lineal {
namespace {

/// Queries that share one product with a window's keys: as many as the window, so that half of the scores count, but no
/// fewer than this, below which calls cost more than scores.
constexpr int64_t kLeastQueries = 16;
/// Scores held at once where they are written out: 8 MiB.
constexpr int64_t kMostScores = 1 << 21;

struct AttentionConfig : Config {
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 0;
  int64_t sliding_window = 0;
  int64_t sink_tokens = 0;
  bool log_n = false;
  bool key_norm = false;
  int64_t head_dim = 0;
  bool qkv_bias = false;
  bool out_bias = false;
  double scale = 0;
  PositionConfig position;

  std::vector<Field> fields() override {
    std::vector<Field> list = {
        {"num_attention_heads", &num_attention_heads, size_range(), "query heads"},
        {"num_key_value_heads", &num_key_value_heads, between(0, 1 << 20), "key and value heads; 0: as many"},
        {"sliding_window", &sliding_window, between(0, 1LL << 40), "tokens seen, the own included; 0: all"},
        {"sink_tokens", &sink_tokens, between(0, 1 << 20), "a document's first tokens, seen beside the window"},
        {"log_n", &log_n, {}, "queries times the logarithm of their place, of base original_length"},
        {"key_norm", &key_norm, {}, "keys of one length"},
        {"head_dim", &head_dim, between(0, 1 << 20), "size of a head; 0: hidden_size / num_attention_heads", 0},
        {"qkv_bias", &qkv_bias, {}, "what makes queries, keys and values has a bias", false},
        {"out_bias", &out_bias, {}, "what makes the output has a bias", false},
        {"scale", &scale, between(0, 1e6), "of the scores; 0: one over the root of a head's size", 0.0},
    };
    for (const Field& field : position.fields()) list.push_back(field);
    return list;
  }
  void validate(const std::string& who) override {
    if (num_key_value_heads > 0 && num_attention_heads % num_key_value_heads != 0) {
      fail(who, ": num_key_value_heads is ", num_key_value_heads, ", expected a divisor of num_attention_heads ",
           num_attention_heads);
    }
    if (sink_tokens > 0 && sliding_window == 0) {
      fail(who, ": sink_tokens is ", sink_tokens, ", expected 0 without a sliding_window, where all is seen");
    }
    if (log_n && position.original_length < 2) {
      fail(who, ": log_n needs original_length, expected the tokens that the model was trained on, at least 2, got ",
           position.original_length);
    }
  }
};

class Attention : public Mixer {
 public:
  Attention(const AttentionConfig& config, int64_t D)
      : config_(config),
        D_(D),
        H_(config.num_attention_heads),
        H_kv_(config.num_key_value_heads > 0 ? config.num_key_value_heads : H_),
        K_(config.head_dim > 0 ? config.head_dim : head_size("attention", D, H_)),
        window_(config.sliding_window),
        sinks_(config.sink_tokens),
        position_(make_position(config.position, K_, H_)) {
    if (sinks_ > 0 && position_->by_pair()) {
      fail("attention: sink_tokens is ", sinks_, ", expected 0 with position ", config.position.position,
           ", whose scores are no products of turned keys");
    }
    q_proj_ = register_module("q_proj", linear(D, H_ * K_, config.qkv_bias));
    k_proj_ = register_module("k_proj", linear(D, H_kv_ * K_, config.qkv_bias));
    v_proj_ = register_module("v_proj", linear(D, H_kv_ * K_, config.qkv_bias));
    o_proj_ = register_module("o_proj", linear(H_ * K_, D, config.out_bias));
  }

  /// Parts: k, v [B, S, H_kv, K], newest last, and position [B], the tokens of the document read. A row's last
  /// position entries (with a window the last min(position, window - 1)) are its own, those before are zeros. With
  /// sinks also k_sink, v_sink [B, sinks, H_kv, K], the document's first tokens, zeros for those to come.
  State initial_state(int64_t B) const override {
    State state;
    state["k"] = at::zeros({B, 0, H_kv_, K_}, state_options());
    state["v"] = at::zeros({B, 0, H_kv_, K_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    if (sinks_ > 0) {
      state["k_sink"] = at::zeros({B, sinks_, H_kv_, K_}, state_options());
      state["v_sink"] = at::zeros({B, sinks_, H_kv_, K_}, state_options());
    }
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("attention", x, state, D_);
    const int64_t B = dims['B'], T = dims['T'], S = state["k"].size(1);
    const auto type = state_options().dtype().toScalarType();
    Call call;
    call.place = segments.positions(state["position"], T);
    call.document = documents(state["position"], S, T, segments);
    call.q = q_proj_(x).to(type).unflatten(2, {H_, K_});       // [B, T, H, K]
    Tensor k = k_proj_(x).to(type).unflatten(2, {H_kv_, K_});  // [B, T, H_kv, K]
    const Tensor v = v_proj_(x).to(type).unflatten(2, {H_kv_, K_});
    if (config_.scale > 0) call.q = call.q * (config_.scale * std::sqrt(static_cast<double>(K_)));
    if (config_.log_n) call.q = call.q * log_n(call.place).to(type);
    if (config_.key_norm) k = k * (k.square().mean(-1, /*keepdim=*/true) + 1e-12).rsqrt();
    k = position_->turn(k, call.place);
    if (sinks_ > 0) call.sinks = see_sinks(call, k, v, state);
    call.q = position_->turn(call.q, call.place);
    call.k = at::cat({state["k"], k}, 1);
    call.v = at::cat({state["v"], v}, 1);
    if (position_->by_pair()) {
      const Tensor before = state["position"].unsqueeze(1) + at::arange(-S, 0, call.place.options());
      call.k_place = at::cat({before.clamp_min(0), call.place}, 1);
    }
    state["position"] = call.place.select(1, -1) + 1;
    keep(call.k, call.v, state, segments);
    if (probe) see_probe(call, v);
    const int64_t size = queries_at_once(B, T, S);
    std::vector<Tensor> parts;
    for (int64_t from = 0; from < T; from += size) parts.push_back(attend(call, from, std::min(from + size, T)));
    const Tensor o = at::cat(parts, 1);  // [B, T, H, K]
    if (probe) probe->outputs = o;
    return o_proj_(o.flatten(2));
  }

  void reset_parameters(double deviation) override {
    for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &o_proj_}) reset_linear(*map, deviation);
  }

 private:
  /// A document's first tokens, as each query sees them.
  struct Sinks {
    Tensor scores;  // [B, H, T, sinks], -infinity for those still in the window
    Tensor v;       // [B, T, sinks, H_kv, K]
  };

  struct Call {
    Tensor q;         // [B, T, H, K]
    Tensor k, v;      // [B, S + T, H_kv, K], cached ones first
    Tensor place;     // [B, T], of the queries in their documents
    Tensor k_place;   // [B, S + T], if scores depend on both
    Tensor document;  // see documents()
    Sinks sinks;
  };

  /// max(1, ln(p + 1) / ln L_0), [B, T, 1, 1].
  Tensor log_n(const Tensor& place) const {
    const double base = std::log(static_cast<double>(config_.position.original_length));
    return ((place.to(at::kDouble) + 1).log() / base).clamp_min(1).unsqueeze(2).unsqueeze(3);
  }

  int64_t queries_at_once(int64_t B, int64_t T, int64_t S) const {
    const int64_t size = window_ > 0 ? std::max(window_, kLeastQueries) : T;
    if (!position_->by_pair()) return size;
    const int64_t keys = window_ > 0 ? std::min(S + T, window_ + size) : S + T;
    return std::clamp(kMostScores / (B * H_ * keys), std::min(kLeastQueries, size), size);
  }

  /// How many cached tokens each row still has to see, of those read.
  Tensor kept(const Tensor& position) const { return window_ > 0 ? position.clamp_max(window_ - 1) : position; }

  /// int64 [B, S + T]: the document that each cached and each new token belongs to, -1 for what is no row's own;
  /// undefined when all belong to one.
  Tensor documents(const Tensor& position, int64_t S, int64_t T, const Segments& segments) const {
    const Tensor own = at::arange(-S, 0, position.options()) >= -kept(position).unsqueeze(1);  // [B, S]
    if (segments.none() && own.all().item<bool>()) return {};
    return at::cat({at::where(own, 0, -1), segments.documents(position.size(0), T, position.device())}, 1);
  }

  /// The answers to queries [from, to), [B, to - from, H, K].
  Tensor attend(const Call& call, int64_t from, int64_t to) const {
    const int64_t S = call.k.size(1) - call.q.size(1), n = to - from;
    const int64_t first = window_ > 0 ? std::max<int64_t>(0, S + from - window_ + 1) : 0;  // key the first query sees
    const int64_t before = S + from - first;                    // query i sees key j <= i + before
    const bool inside = window_ == 0 || before + n <= window_;  // no query has a key beyond its window
    const bool causal = !call.document.defined() && inside && before == 0;
    const bool written_out = position_->by_pair() || sinks_ > 0;
    Tensor mask;  // bool [n, before + n] or [B, 1, n, before + n]
    if ((!causal || written_out) && (call.document.defined() || n > 1)) {
      mask = at::ones({n, before + n}, call.q.options().dtype(at::kBool)).tril(before);
      if (!inside) mask = mask.triu(before - window_ + 1);
      if (call.document.defined()) {
        const Tensor seen = call.document.slice(1, first, S + to), own = call.document.slice(1, S + from, S + to);
        mask = mask.logical_and(own.unsqueeze(2) == seen.unsqueeze(1)).unsqueeze(1);
      }
    }
    const Tensor q = call.q.slice(1, from, to), k = call.k.slice(1, first, S + to), v = call.v.slice(1, first, S + to);
    if (!written_out) {
      return at::scaled_dot_product_attention(
                 q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                 mask.defined() ? std::optional<Tensor>(mask) : std::nullopt, /*dropout_p=*/0.0,
                 /*is_causal=*/causal && n > 1, /*scale=*/std::nullopt, /*enable_gqa=*/k.size(2) != H_)
          .transpose(1, 2);
    }
    const Tensor k_place = call.k_place.defined() ? call.k_place.slice(1, first, S + to) : Tensor();
    Tensor scores = position_->scores(q, k, call.place.slice(1, from, to), k_place);  // [B, H, n, before + n]
    if (mask.defined()) scores = scores.masked_fill(mask.logical_not(), -INFINITY);
    if (sinks_ == 0) return weighted_sum(scores.softmax(-1), v);
    const Tensor p = at::cat({call.sinks.scores.slice(2, from, to), scores}, 3).softmax(-1);
    const int64_t heads = v.size(2);                                                  // H_kv, or H with a probe
    const Tensor of_sinks = p.slice(3, 0, sinks_).unflatten(1, {heads, H_ / heads});  // [B, H_kv, G, n, sinks]
    const Tensor far = at::einsum("bhgns,bnshv->bnhgv", {of_sinks, call.sinks.v.slice(1, from, to)});
    return far.flatten(2, 3) + weighted_sum(p.slice(3, sinks_), v);
  }

  /// The probe's values instead of the call's v: one for each query head, none of tokens read before.
  void see_probe(Call& call, const Tensor& v) const {
    const Tensor own = probed(probe, v.repeat_interleave(H_ / H_kv_, 2));  // [B, T, H, V]
    const int64_t S = call.k.size(1) - own.size(1);
    call.k = call.k.repeat_interleave(H_ / H_kv_, 2);
    call.v = at::constant_pad_nd(own, {0, 0, 0, 0, S, 0});
    if (sinks_ == 0) return;
    const Tensor none = at::zeros_like(own.slice(1, 0, 1)).expand({-1, sinks_, -1, -1});
    call.sinks.v = first_tokens(none, own, call.place, 0);
  }

  /// What queries at `place` [B, n], the call's tokens from `from` on, find at their document's first places:
  /// [B, n, sinks, H_kv, K] of x [B, T, H_kv, K] and the running document's `kept` [B, sinks, H_kv, K]. Anything for
  /// tokens after them.
  Tensor first_tokens(const Tensor& kept, const Tensor& x, const Tensor& place, int64_t from) const {
    const int64_t B = x.size(0), T = x.size(1);
    const Tensor sink = at::arange(sinks_, place.options()), row = at::arange(B, place.options()).view({B, 1, 1});
    const Tensor start = at::arange(from, from + place.size(1), place.options()) - place;  // negative: before the call
    const Tensor token = start.unsqueeze(2) + sink;                                        // [B, n, sinks]
    const Tensor index = at::where(token < 0, sink, sinks_ + token.clamp_max(T - 1));
    return at::index(at::cat({kept, x}, 1), {row, index});
  }

  /// k, v [B, T, H_kv, K]: the call's own, turned; call.q not yet. The state's sinks become the running documents'.
  Sinks see_sinks(const Call& call, const Tensor& k, const Tensor& v, State& state) const {
    const Tensor sink = at::arange(sinks_, call.place.options());
    const Tensor q = position_->turn(call.q, call.place.clamp_max(sinks_ + window_ - 1));
    const Tensor keys = first_tokens(state["k_sink"], k, call.place, 0);
    const Tensor products = at::einsum("bnhgk,bnshk->bhgns", {q.unflatten(2, {H_kv_, H_ / H_kv_}), keys});
    const Tensor near = (call.place.unsqueeze(2) - sink < window_).unsqueeze(1);  // [B, 1, T, sinks]
    Sinks sinks{(products.flatten(1, 2) / std::sqrt(static_cast<double>(K_))).masked_fill(near, -INFINITY),
                first_tokens(state["v_sink"], v, call.place, 0)};
    const Tensor last = call.place.slice(1, -1);
    const Tensor read = (sink <= last).unsqueeze(2).unsqueeze(3);  // [B, sinks, 1, 1]
    for (const auto& [name, x] : {std::pair("k_sink", k), std::pair("v_sink", v)}) {
      state[name] = at::where(read, first_tokens(state[name], x, last, x.size(1) - 1).squeeze(1), 0);
    }
    return sinks;
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

  AttentionConfig config_;
  int64_t D_, H_, H_kv_, K_, window_, sinks_;
  std::unique_ptr<Position> position_;
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
