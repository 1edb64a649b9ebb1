// Reformer: softmax attention over the keys of a query's bucket, in several rounds of hashing.         (Reformer, 2020)
//   initial  empty buckets                                    keys, values and places [n, W, .] per head and round
//   update   token t enters bucket b_r(t) of each round r, whose oldest token leaves when it has more than W
//   output   o_t = sum_r softmax_r(l_r) o_r,  o_r = softmax(scores) v and l_r = logsumexp(scores) of what t sees in r
//   scores   K^{-1/2} q_t . k_j, k_j = q_j / |q_j|; kSelfScore for j = t; less ln(c + 1e-9) unless
//            allow_duplicate_attention, c the rounds in which t sees j
//   cost     O(T R (W + n W / C) K) time for pieces of C tokens, each of which sorts all buckets; 2 R n W K state per
//   head
// What t sees in round r: sort the tokens of its document up to t by (bucket, place), as lsh.cc sorts whole sequences.
// t sees itself and the W - 1 tokens before it, W = 2 bucket_size: of its own bucket the newest, then, with
// attend_across_buckets, the newest of the bucket before it, and so on. The published chunks of bucket_size hold
// between W/2 and W of these, by where borders fall among all tokens, later ones too: what an early token sees then
// depends on the future. Without borders nothing does, and where a bucket fits into its chunks both see the same.
#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear.h"
#include "mixers/lsh.h"
#include "mixers/mixer.h"
#include "positions/rope.h"

namespace lineal {
namespace {

struct ReformerConfig : Config {
  int64_t num_attention_heads = 4;
  double rope_theta = 10000;
  int64_t num_hashes = 2;
  int64_t num_buckets = 16;
  int64_t bucket_size = 16;
  bool attend_across_buckets = true;
  bool allow_duplicate_attention = true;
  int64_t chunk_size = 64;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "heads"},
        {"rope_theta", &rope_theta, at_least(0), "rotary base; 0 for none"},
        {"num_hashes", &num_hashes, between(1, 64), "rounds of hashing"},
        {"num_buckets", &num_buckets, between(2, 1 << 16), "buckets of a round, an even number"},
        {"bucket_size", &bucket_size, size_range(), "a token sees the newest 2 bucket_size in a round"},
        {"attend_across_buckets", &attend_across_buckets, {}, "tokens of the buckets before fill up what is seen"},
        {"allow_duplicate_attention", &allow_duplicate_attention, {}, "tokens seen in two rounds count twice"},
        {"chunk_size", &chunk_size, size_range(), "tokens computed at once; changes no result"},
    };
  }
  void validate(const std::string& who) override {
    if (num_buckets % 2 != 0) fail(who, ": num_buckets is ", num_buckets, ", expected an even number");
    check_rotary_base(who, rope_theta);
  }
};

/// x [B, H, R, P, ...], index [B, H, R, ...] -> [B, H, R, (index's sizes), ...].
Tensor pick_entries(const Tensor& x, const Tensor& index) {
  const Tensor rows = x.flatten(0, 2), flat = index.flatten(0, 2).flatten(1);
  const Tensor found = at::index(rows, {at::arange(rows.size(0), flat.options()).unsqueeze(1), flat});
  std::vector<int64_t> sizes = index.sizes().vec();
  for (int64_t i = 4; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return found.view(sizes);
}

class Reformer : public Mixer {
 public:
  Reformer(const ReformerConfig& config, int64_t D)
      : config_(config),
        D_(D),
        H_(config.num_attention_heads),
        K_(head_size("reformer", D, H_)),
        R_(config.num_hashes),
        n_(config.num_buckets),
        W_(2 * config.bucket_size) {
    if (config.rope_theta > 0 && K_ % 2 != 0) {
      fail("reformer: head size is ", K_, ", rotary embedding needs an even one");
    }
    qk_proj_ = register_module("qk_proj", linear(D, D));
    v_proj_ = register_module("v_proj", linear(D, D));
    o_proj_ = register_module("o_proj", linear(D, D));
    rotations_ = register_buffer("rotations", at::empty({K_, R_, n_ / 2}));
  }

  /// Parts: k, v [B, H, R, n, W, K] and place int64 [B, H, R, n, W], each bucket's newest tokens, newest last; place -1
  /// and zeros where there is none; position [B].
  State initial_state(int64_t B) const override {
    const auto whole = state_options().dtype(at::kLong);
    State state;
    state["k"] = at::zeros({B, H_, R_, n_, W_, K_}, state_options());
    state["v"] = at::zeros({B, H_, R_, n_, W_, K_}, state_options());
    state["place"] = at::full({B, H_, R_, n_, W_}, -1, whole);
    state["position"] = at::zeros({B}, whole);
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("reformer", x, state, D_);
    const int64_t T = dims['T'];
    const auto type = state_options().dtype().toScalarType();
    const Tensor place = count(state, T, segments, nullptr);  // [B, T]
    Tensor q = qk_proj_(x).to(type).unflatten(2, {H_, K_});   // [B, T, H, K]
    const Tensor v = v_proj_(x).to(type).unflatten(2, {H_, K_});
    if (config_.rope_theta > 0) q = rope(q, place, config_.rope_theta, RopePairs::halves);
    std::vector<Tensor> o;
    {
      const FullPrecision guard(x);
      for (int64_t from = 0; from < T; from += config_.chunk_size) {
        const int64_t to = std::min(from + config_.chunk_size, T);
        const auto part = [&](const Tensor& y) { return y.slice(1, from, to); };
        o.push_back(read(part(q), part(v), part(place), state, segments.slice(from, to)));
      }
    }
    return o_proj_(at::cat(o, 1).flatten(2));
  }

  void reset_parameters(double deviation) override {
    for (auto* map : {&qk_proj_, &v_proj_, &o_proj_}) reset_linear(*map, deviation);
    at::NoGradGuard no_grad;
    rotations_.normal_();
  }

 private:
  /// The state's tokens and the chunk's, sorted by (document, bucket, place), in each round of each head.
  struct Sorted {
    Tensor order;  // [B, H, R, n W + C], indices into both, the state's first
    Tensor begin;  // [B, H, R, G], where each of G = documents x buckets begins in it
    Tensor total;  // [B, H, R, G], its tokens
    Tensor upto;   // [B, H, R, C, G], of these not later than each of the chunk's tokens
    Tensor group;  // [B, H, R, C], of the chunk's tokens
  };

  Sorted sort(const Tensor& bucket, const Tensor& held, const Tensor& document) const {
    const auto whole = bucket.options();
    const int64_t groups = (document.max().item<int64_t>() + 1) * n_;
    const Tensor group = bucket + n_ * document.unsqueeze(1).unsqueeze(2);
    const Tensor empty = held.flatten(3) < 0;  // [B, H, R, n W]
    const Tensor state_group = at::where(empty, groups, at::arange(n_, whole).repeat_interleave(W_));
    const Tensor order = at::argsort(at::cat({state_group, group}, 3), /*stable=*/true, 3);
    const Tensor is_in = at::one_hot(group, groups);  // [B, H, R, C, G]
    const Tensor before = at::constant_pad_nd((held >= 0).sum(4), {0, groups - n_});
    const Tensor upto = before.unsqueeze(3) + is_in.cumsum(3), total = before + is_in.sum(3);
    return {order, total.cumsum(3) - total, total, upto, group};
  }

  /// q, v [B, C, H, K], place [B, C] -> [B, C, H, K].
  Tensor read(const Tensor& q, const Tensor& v, const Tensor& place, State& state, const Segments& segments) const {
    const int64_t C = q.size(1);
    const Tensor document = segments.documents(q.size(0), C, q.device());
    const Tensor queries = q.transpose(1, 2);                                                          // [B, H, C, K]
    const Tensor bucket = lsh_buckets(queries, rotations_.to(q.scalar_type())).permute({0, 1, 3, 2});  // [B, H, R, C]
    const Sorted sorted = sort(bucket, state["place"], document);
    const auto joined = [&](const char* part, const Tensor& own) {  // own [B, H, C, ...]
      auto sizes = own.unsqueeze(2).sizes().vec();
      sizes[2] = R_;
      return at::cat({state[part].flatten(3, 4), own.unsqueeze(2).expand(sizes)}, 3);
    };
    const Tensor unit = queries / queries.norm(2, {3}, /*keepdim=*/true).clamp_min(1e-12);
    const Tensor keys = joined("k", unit), values = joined("v", v.transpose(1, 2));  // [B, H, R, n W + C, K]
    const Tensor places = joined("place", place.unsqueeze(1).expand({-1, H_, -1}));

    const auto [entry, seen] = what_is_seen(sorted, document);  // [B, H, R, C, W]
    Tensor scores = at::einsum("bhck,bhrcwk->bhrcw", {queries, pick_entries(keys, entry)});
    scores = scores / std::sqrt(static_cast<double>(K_));
    scores = at::cat({at::full_like(scores.slice(4, 0, 1), kSelfScore), scores.slice(4, 1)}, 4);
    if (!config_.allow_duplicate_attention) {
      scores = scores - (rounds_that_see(pick_entries(places, entry), seen).to(scores.scalar_type()) + 1e-9).log();
    }
    scores = scores.masked_fill(seen.logical_not(), -INFINITY);
    const Tensor l = scores.logsumexp({4}, /*keepdim=*/true);  // [B, H, R, C, 1]
    const Tensor o = at::einsum("bhrcw,bhrcwk->bhrck", {(scores - l).exp(), pick_entries(values, entry)});
    keep(sorted, document, keys, values, places, state);
    return (o * l.softmax(2)).sum(2).transpose(1, 2);
  }

  /// The entry at each of the W places of the sorted tokens up to the query, itself first, and whether it is seen.
  std::pair<Tensor, Tensor> what_is_seen(const Sorted& sorted, const Tensor& document) const {
    const Tensor ends = sorted.upto.cumsum(4);      // [B, H, R, C, G], among the tokens up to the query
    const auto end_of = [&](const Tensor& group) {  // the end of the groups before it
      const Tensor before = ends.gather(4, (group - 1).clamp_min(0).unsqueeze(4));
      return at::where(group.unsqueeze(4) > 0, before, 0);
    };
    const Tensor own = sorted.group;
    const Tensor first = document.unsqueeze(1).unsqueeze(2) * n_;  // group of the document's first bucket
    const Tensor least = end_of(config_.attend_across_buckets ? first.expand_as(own) : own);
    const Tensor index = ends.gather(4, own.unsqueeze(4)) - 1 - at::arange(W_, own.options());  // [B, H, R, C, W]
    const Tensor seen = index >= least, at_least = index.clamp_min(0);
    const Tensor group = at::searchsorted(ends, at_least, /*out_int32=*/false, /*right=*/true);
    const Tensor within = at_least - (ends - sorted.upto).gather(4, group);
    const Tensor begin = sorted.begin.unsqueeze(3).expand_as(ends).gather(4, group);
    return {pick_entries(sorted.order, begin + within), seen};
  }

  /// places [B, H, R, C, W] of what is seen -> in how many rounds each of them is.
  Tensor rounds_that_see(const Tensor& places, const Tensor& seen) const {
    const Tensor all = at::where(seen, places, -1).transpose(2, 3).flatten(3);  // [B, H, C, R W]
    const Tensor count = (all.unsqueeze(4) == all.unsqueeze(3)).sum(4);         // [B, H, C, R W]
    return count.unflatten(3, {R_, W_}).transpose(2, 3);
  }

  /// Leaves the newest W tokens of each bucket of the last document in the state.
  void keep(const Sorted& sorted, const Tensor& document, const Tensor& keys, const Tensor& values,
            const Tensor& places, State& state) const {
    const auto whole = sorted.order.options();
    const Tensor last = document.select(1, -1).view({-1, 1, 1, 1}) * n_ + at::arange(n_, whole);  // [B, 1, 1, n]
    const Tensor groups = last.expand({-1, H_, R_, n_});
    const Tensor total = sorted.total.gather(3, groups), begin = sorted.begin.gather(3, groups);
    const Tensor within = total.unsqueeze(4) - W_ + at::arange(W_, whole);  // [B, H, R, n, W]
    const Tensor held = within >= 0;
    const Tensor entry =
        pick_entries(sorted.order, (begin.unsqueeze(4) + within.clamp_min(0)).clamp_max(sorted.order.size(3) - 1));
    const Tensor numbers = held.unsqueeze(5);
    state["k"] = at::where(numbers, pick_entries(keys, entry), 0);
    state["v"] = at::where(numbers, pick_entries(values, entry), 0);
    state["place"] = at::where(held, pick_entries(places, entry), -1);
  }

  ReformerConfig config_;
  int64_t D_, H_, K_, R_, n_, W_;
  LinearMap qk_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  Tensor rotations_;
};

}  // namespace

extern const MixerSpec reformer_spec;
const MixerSpec reformer_spec = {
    .name = "reformer",
    .help = "softmax attention over the newest keys of a query's hash bucket (Reformer, 2020)",
    .config = make_config<ReformerConfig>,
    .make = make_mixer<Reformer, ReformerConfig>,
};

}  // namespace lineal
