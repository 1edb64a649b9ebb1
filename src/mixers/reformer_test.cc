#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>

#include "core/error.h"
#include "mixers/lsh.h"
#include "mixers/mixer.h"
#include "testing/plain_layer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

struct Published {
  const char* id;
  LshOptions options;
};

const Published kPublished[] = {
    {"lsh/lsh_causal", {8, true, true, true}},
    {"lsh/lsh_causal_nodup", {8, true, true, false}},
    {"lsh/lsh_noncausal_inbucket", {8, false, false, true}},
    {"lsh/lsh_causal_inbucket_nodup", {4, true, false, false}},
};

Tensor rotations_of(const Golden& golden) { return golden["rotations"].squeeze(0).to(at::kDouble); }

TEST(Lsh, IsThePublishedAttention) {
  for (const auto& [id, options] : kPublished) {
    SCOPED_TRACE(id);
    const Golden golden(id);
    const Tensor qk = golden["qk"].to(at::kDouble).requires_grad_(), v = golden["v"].to(at::kDouble).requires_grad_();
    const Tensor rotations = rotations_of(golden);
    const int64_t B = qk.size(0), T = qk.size(1), R = rotations.size(1), n = 2 * rotations.size(2);
    const Tensor buckets = lsh_buckets(qk, rotations).transpose(1, 2) + n * at::arange(R).unsqueeze(1);
    EXPECT_CLOSE(buckets.flatten(1), golden["buckets"], 0);
    const Tensor out = lsh_attention(qk, v, rotations, options);
    EXPECT_CLOSE(out, golden["out"], 1e-9);  // weights of rounds are differences of -5e4
    EXPECT_CLOSE(lsh_attention(qk, at::eye(T, v.options()).expand({B, T, T}), rotations, options), golden["attn"],
                 1e-9);
    const auto gradients = torch::autograd::grad({(out * golden["probe"]).sum()}, {qk, v});
    EXPECT_CLOSE(gradients[0], golden["grad.qk"], 1e-9);
    EXPECT_CLOSE(gradients[1], golden["grad.v"], 1e-9);
  }
}

TEST(Lsh, RefusesWhatCannotBe) {
  const Tensor x = at::zeros({1, 12, 4});
  EXPECT_ERROR(lsh_attention(x, x, at::zeros({4, 2, 1}), {4}), "12 tokens, expected a multiple of 2 bucket_size 8");
  EXPECT_ERROR(lsh_attention(x, x, at::zeros({4, 2, 1}), {3}), "expected [K, R, 2] for 4 buckets");
}

/// One head whose maps are identities.
std::shared_ptr<Mixer> bare(const Tensor& rotations, const LshOptions& options, int64_t D) {
  at::NoGradGuard no_grad;
  const auto mixer = make_mixer("reformer",
                                {{"num_attention_heads", 1},
                                 {"rope_theta", 0},
                                 {"num_hashes", rotations.size(1)},
                                 {"num_buckets", 2 * rotations.size(2)},
                                 {"bucket_size", options.bucket_size},
                                 {"attend_across_buckets", options.attend_across_buckets},
                                 {"allow_duplicate_attention", options.allow_duplicate_attention},
                                 {"chunk_size", 7}},
                                D);
  mixer->to(at::kDouble);
  for (Tensor& map : mixer->parameters()) map.copy_(at::eye(D));
  mixer->named_buffers()["rotations"].copy_(rotations);
  return mixer;
}

using Seen = std::vector<std::vector<int64_t>>;  // of each round, the tokens that a query sees

/// The newest 2 bucket_size of the tokens up to t, sorted by (bucket, place); bucket [R, T].
Seen seen_by(const Tensor& bucket, int64_t t, const LshOptions& options) {
  Seen seen;
  for (int64_t r = 0; r < bucket.size(0); ++r) {
    const auto of = [&](int64_t j) { return bucket[r][j].item<int64_t>(); };
    std::vector<int64_t> list;
    for (int64_t j = 0; j <= t; ++j) {
      if (of(j) == of(t) || (options.attend_across_buckets && of(j) < of(t))) list.push_back(j);
    }
    std::stable_sort(list.begin(), list.end(), [&](int64_t a, int64_t b) { return of(a) < of(b); });
    if (std::ssize(list) > 2 * options.bucket_size) list.erase(list.begin(), list.end() - 2 * options.bucket_size);
    seen.push_back(list);
  }
  return seen;
}

/// What the published chunks show query t of tokens up to it, once per time that it is there.
Seen published_seen(const Tensor& bucket, int64_t t, const LshOptions& options) {
  const int64_t R = bucket.size(0), T = bucket.size(1), chunks = R * T / options.bucket_size;
  std::vector<std::pair<int64_t, int64_t>> list;  // of (bucket, token), all rounds
  for (int64_t r = 0; r < R; ++r) {
    std::vector<std::pair<int64_t, int64_t>> round;
    for (int64_t j = 0; j < T; ++j) round.emplace_back(r * T + bucket[r][j].item<int64_t>(), j);
    std::sort(round.begin(), round.end());
    list.insert(list.end(), round.begin(), round.end());
  }
  Seen seen;
  for (int64_t r = 0; r < R; ++r) {
    const std::pair<int64_t, int64_t> own = {r * T + bucket[r][t].item<int64_t>(), t};
    const int64_t chunk = (std::find(list.begin(), list.end(), own) - list.begin()) / options.bucket_size;
    std::vector<int64_t> tokens;
    for (const int64_t c : {chunk, (chunk + chunks - 1) % chunks}) {
      for (int64_t i = c * options.bucket_size; i < (c + 1) * options.bucket_size; ++i) {
        const auto [group, j] = list[static_cast<size_t>(i)];
        if (j <= t && (options.attend_across_buckets || group == own.first)) tokens.push_back(j);
      }
    }
    seen.push_back(tokens);
  }
  return seen;
}

/// The answer to query t, x [T, K].
Tensor plain_answer(const Tensor& x, int64_t t, const Seen& seen, const LshOptions& options) {
  std::vector<Tensor> o, l;
  for (const auto& tokens : seen) {
    std::vector<Tensor> scores;
    for (const int64_t j : tokens) {
      Tensor score = j == t ? at::full({}, kSelfScore, x.options())
                            : (x[t] * x[j] / x[j].norm()).sum() / std::sqrt(static_cast<double>(x.size(1)));
      if (!options.allow_duplicate_attention) {
        double rounds = 0;
        for (const auto& other : seen) rounds += std::find(other.begin(), other.end(), j) != other.end();
        score = score - std::log(rounds + 1e-9);
      }
      scores.push_back(score);
    }
    const Tensor all = at::stack(scores);
    o.push_back(at::matmul(all.softmax(0), x.index_select(0, at::tensor(tokens, at::kLong))));
    l.push_back(all.logsumexp(0));
  }
  return at::matmul(at::stack(l).softmax(0), at::stack(o));
}

TEST(Reformer, IsItsFormula) {
  at::NoGradGuard no_grad;
  const int64_t T = 41, D = 6;
  const Tensor x = normal({1, T, D}, 1, at::kDouble), rotations = normal({D, 3, 2}, 2, at::kDouble);
  const Tensor bucket = lsh_buckets(x, rotations).squeeze(0).t();  // [R, T]
  for (const bool across : {true, false}) {
    for (const bool duplicates : {true, false}) {
      const LshOptions options{3, true, across, duplicates};
      const auto mixer = bare(rotations, options, D);
      const Tensor y = read_all(*mixer, x);
      for (int64_t t = 0; t < T; ++t) {
        EXPECT_CLOSE(y[0][t], plain_answer(x[0], t, seen_by(bucket, t, options), options), 1e-10)
            << "token " << t << ", across " << across << ", duplicates " << duplicates;
      }
    }
  }
}

bool same_tokens(Seen a, Seen b) {
  for (Seen* seen : {&a, &b}) {
    for (auto& tokens : *seen) std::sort(tokens.begin(), tokens.end());
  }
  return a == b;
}

/// The causal goldens, token by token, with values of their own: where the published chunks show a token what it sees
/// here the answers are the same. The others differ as the sets of tokens do, which in the published form depend on
/// later tokens: lsh_causal and lsh_causal_nodup cut chunks through buckets that later tokens filled, and
/// lsh_noncausal_inbucket looks ahead.
TEST(Reformer, IsThePublishedAttentionWhereBucketsFitTheirChunks) {
  at::NoGradGuard no_grad;
  for (const auto& [id, options] : kPublished) {
    if (!options.causal) continue;
    SCOPED_TRACE(id);
    const Golden golden(id);
    const Tensor qk = golden["qk"].to(at::kDouble), rotations = rotations_of(golden);
    const int64_t B = qk.size(0), T = qk.size(1), D = qk.size(2);
    const auto mixer = bare(rotations, options, D);
    const Tensor ours = read_all(*mixer, qk), theirs = lsh_attention(qk, qk, rotations, options);
    int64_t same = 0;
    for (int64_t b = 0; b < B; ++b) {
      const Tensor bucket = lsh_buckets(qk[b], rotations).t();
      for (int64_t t = 0; t < T; ++t) {
        if (!same_tokens(seen_by(bucket, t, options), published_seen(bucket, t, options))) continue;
        ++same;
        EXPECT_CLOSE(ours[b][t], theirs[b][t], 1e-9) << "row " << b << ", token " << t;
      }
    }
    EXPECT_GE(same, options.attend_across_buckets ? 1 : T / 2) << "of " << B * T;
  }
}

/// Buckets so large that nobody leaves them, chunks that hold all: full attention but for oneself.
TEST(Reformer, IsThePublishedAttentionWholeWhenAllFit) {
  const int64_t T = 24, D = 6;
  const Tensor x = normal({2, T, D}, 1, at::kDouble).requires_grad_(), probe = normal({2, T, D}, 3, at::kDouble);
  const Tensor rotations = normal({D, 3, 1}, 2, at::kDouble);
  const LshOptions options{T / 2, true, false, false};
  const Tensor ours = read_all(*bare(rotations, options, D), x), theirs = lsh_attention(x, x, rotations, options);
  EXPECT_CLOSE(ours, theirs, 1e-9);
  EXPECT_CLOSE(torch::autograd::grad({(ours * probe).sum()}, {x})[0],
               torch::autograd::grad({(theirs * probe).sum()}, {x})[0], 1e-9);
}

/// The published form is not causal: another last token moves earlier answers, by where its bucket's borders then lie.
TEST(Reformer, NothingReachesBackUnlikeThePublishedForm) {
  at::NoGradGuard no_grad;
  const int64_t T = 48, D = 8;
  const Tensor x = normal({1, T, D}, 1, at::kDouble), rotations = normal({D, 2, 6}, 2, at::kDouble);
  const LshOptions options{4, true, true, true};
  const auto mixer = bare(rotations, options, D);
  double ours = 0, theirs = 0;
  for (uint64_t seed = 3; seed < 9; ++seed) {
    Tensor other = x.clone();
    other.select(1, T - 1).copy_(normal({1, D}, seed, at::kDouble));
    const auto moved = [&](const Tensor& a, const Tensor& b) {
      return (a - b).slice(1, 0, T - 1).abs().max().item<double>();
    };
    ours = std::max(ours, moved(read_all(*mixer, other), read_all(*mixer, x)));
    theirs = std::max(theirs,
                      moved(lsh_attention(other, other, rotations, options), lsh_attention(x, x, rotations, options)));
  }
  EXPECT_EQ(ours, 0);
  EXPECT_GT(theirs, 0.01);
}

TEST(Reformer, RefusesWhatCannotBe) {
  EXPECT_ERROR(make_mixer("reformer", {{"num_buckets", 5}}, 16), "num_buckets is 5, expected an even number");
  EXPECT_ERROR(make_mixer("reformer", {{"num_attention_heads", 8}}, 24),
               "head size is 3, rotary embedding needs an even");
}

}  // namespace
}  // namespace lineal
