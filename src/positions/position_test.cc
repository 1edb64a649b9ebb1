#include "positions/position.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/registry.h"
#include "positions/rope_scaling.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using Method = Frequencies (*)(const PositionConfig&, int64_t);

PositionConfig config_of(const Json& options) {
  PositionConfig config;
  config.read(options, "test");
  return config;
}

struct Published {
  const char* id;
  int64_t K;
  double theta;
  int64_t length;
  std::vector<int64_t> factors;
};

const Published kPublished[] = {{"rope/freqs_d16_b1e4", 16, 1e4, 64, {1, 2, 4, 8, 16}},
                                {"rope/freqs_d64_b1e4", 64, 1e4, 2048, {1, 2, 4, 16, 32}},
                                {"rope/freqs_d128_b5e5", 128, 5e5, 8192, {2, 8}}};

/// Frequencies, tables and temperatures of public implementations, every scheme and factor that they have.
TEST(Positions, FrequenciesAreThePublishedOnes) {
  const std::vector<std::tuple<const char*, const char*, Method>> methods = {
      {"linear", "pi", linear_frequencies},
      {"ntk", "ntk", ntk_frequencies},
      {"ntk_by_parts", "partntk", ntk_by_parts_frequencies},
      {"yarn", "yarn", yarn_frequencies},
      {"llama3", "llama3", llama3_frequencies},
      {"dynamic_ntk", "dynntk", [](const PositionConfig& config, int64_t K) {
         return dynamic_ntk_frequencies(config, K, std::llround(config.factor) * config.original_length);
       }}};
  for (const auto& [id, K, theta, length, factors] : kPublished) {
    const Golden golden(id);
    int compared = 0;
    for (const int64_t factor : factors) {
      for (const auto& [name, published, method] : methods) {
        const auto config =
            config_of({{"position", name}, {"rope_theta", theta}, {"original_length", length}, {"factor", factor}});
        const std::string key = text(published, ".s", factor);
        if (!golden.has("inv_freq." + key)) continue;
        SCOPED_TRACE(text(id, " ", key));
        const Frequencies found = method(config, K);
        EXPECT_CLOSE(found.f / golden["inv_freq." + key], at::ones({K / 2}, at::kDouble), 1e-12);
        ++compared;
        if (!golden.has("cos." + key)) continue;
        const Tensor positions = golden["positions"];
        const auto table = rope_table(positions, found, RopePairs::halves, golden["cos." + key].options());
        EXPECT_CLOSE(table.c, golden["cos." + key], 1e-11);
        const Tensor sign = at::cat({-at::ones({K / 2}), at::ones({K / 2})});
        EXPECT_CLOSE(table.s, sign * golden["sin." + key], 1e-11);
        const double scale = golden.has("mscale." + key) ? golden["mscale." + key].item<double>() : 1;
        EXPECT_NEAR(found.scale, scale, 1e-12);
      }
    }
    EXPECT_EQ(compared, 6 * static_cast<int>(factors.size()) - (factors[0] == 1 ? 2 : 0));  // two schemes lack factor 1
  }
}

/// Where even the slowest pair turns often, the ramp ends beyond the last of the pairs 0 to K/2-1: at K-1 at most, as
/// published.
TEST(Positions, YarnsRampEndsBeyondTheLastPair) {
  const auto mask_of = [](int64_t length, double beta_fast) {
    const auto config = config_of({{"position", "yarn"},
                                   {"rope_theta", 50},
                                   {"original_length", length},
                                   {"factor", 4},
                                   {"beta_fast", beta_fast}});
    const Tensor f = rope_frequencies(8, 50).f;
    return (yarn_frequencies(config, 8).f - f / 4) / (f - f / 4);
  };
  EXPECT_CLOSE(mask_of(1000, 32), at::tensor({1., 1., 4. / 5, 3. / 5}, at::kDouble), 1e-12);  // pairs 1 to 6
  EXPECT_CLOSE(mask_of(20000, 1000), at::tensor({1., 1., 5. / 6, 4. / 6}, at::kDouble),
               1e-12);  // 1 to 9, of which 7 is left
}

/// Half of a pair where its ramp is not rounded; and a scale of its own.
TEST(Positions, YarnsOtherConventions) {
  const Json options = {{"position", "yarn"}, {"rope_theta", 50},  {"original_length", 1000},
                        {"factor", 4},        {"truncate", false}, {"attention_factor", 1.7}};
  const Tensor f = rope_frequencies(8, 50).f;
  const auto found = yarn_frequencies(config_of(options), 8);
  const auto pair = [](double turns) { return 8 * std::log(1000 / (2 * M_PI * turns)) / (2 * std::log(50)); };
  const Tensor mask = 1 - ((at::arange(4, at::kDouble) - pair(32)) / (pair(1) - pair(32))).clamp(0, 1);
  EXPECT_CLOSE(found.f, f / 4 * (1 - mask) + f * mask, 1e-12);
  EXPECT_EQ(found.scale, 1.7);
}

/// The first numbers of a head are a head of their own, whose scores count by their share.
TEST(Positions, APartOfAHead) {
  const Tensor q = normal({2, 5, 3, 10}, 1, at::kDouble), k = normal({2, 5, 1, 10}, 2, at::kDouble);
  const Tensor place = at::arange(7, 12, at::kLong).expand({2, 5});
  for (const char* name : {"rope", "dynamic_ntk", "rerope"}) {
    Json options = {{"position", name}, {"original_length", 4}, {"rerope_window", 2}, {"rotary_dims", 6}};
    const auto partial = make_position(config_of(options), 10, 3);
    options["rotary_dims"] = 0;
    const auto own = make_position(config_of(options), 6, 3);
    const auto scores = [&](const Position& position, int64_t from, int64_t to) {
      const Tensor a = q.slice(3, from, to), b = k.slice(3, from, to);
      return position.scores(position.turn(a, place), position.turn(b, place), place, place);
    };
    const Tensor rest = dot_scores(q.slice(3, 6), k.slice(3, 6));
    EXPECT_CLOSE(scores(*partial, 0, 10), scores(*own, 0, 6) * std::sqrt(0.6) + rest * std::sqrt(0.4), 1e-12) << name;
  }
  EXPECT_ERROR(make_position(config_of({{"rotary_dims", 12}}), 10, 3), "rotary_dims is 12, expected at most");
  EXPECT_ERROR(make_position(config_of({{"position", "alibi"}, {"rotary_dims", 4}}), 10, 3), "alibi turns nothing");
}

/// Weights and outputs of a public implementation of both, in one call and one query at a time.
TEST(Positions, ReRopeIsThePublishedAttention) {
  for (const auto& [id, window, length, factor] :
       {std::tuple("rope/rerope_w6", 6, 8, 4), {"rope/rerope_w4", 4, 16, 8}}) {
    const Golden golden(id);
    const auto tokens = [&](const char* name) { return golden[name].to(at::kDouble).transpose(1, 2); };  // [B, T, H, K]
    const Tensor k = tokens("k"), v = tokens("v"), q = tokens("q") * golden["logn"].view({1, -1, 1, 1});
    const int64_t T = q.size(1);
    const Tensor place = at::arange(T).unsqueeze(0), later = at::ones({T, T}, at::kBool).triu(1);
    const Tensor n = (at::arange(T, at::kDouble) + 1).log() / std::log(static_cast<double>(length));
    EXPECT_CLOSE(n.clamp_min(1), golden["logn"], 1e-12);
    for (const auto& [name, published] : {std::pair("rerope", "rerope"), {"leaky_rerope", "leaky"}}) {
      SCOPED_TRACE(text(id, " ", name));
      const auto position =
          make_position(config_of({{"position", name}, {"rerope_window", window}, {"factor", factor}}), q.size(3), 2);
      const Tensor scores = position->scores(position->turn(q, place), position->turn(k, place), place, place);
      const Tensor p = scores.masked_fill(later, -INFINITY).softmax(-1);
      EXPECT_CLOSE(p, golden[text("weights.", published)], 1e-11);
      EXPECT_CLOSE(weighted_sum(p, v).flatten(2), golden[text("attn.", published)], 1e-11);
      for (int64_t t = 0; t < T; ++t) {
        const Tensor one = position->scores(q.slice(1, t, t + 1), k.slice(1, 0, t + 1), place.slice(1, t, t + 1),
                                            place.slice(1, 0, t + 1));
        EXPECT_CLOSE(one, scores.slice(2, t, t + 1).slice(3, 0, t + 1), 1e-12) << t;
      }
    }
  }
}

/// ALiBi's slopes as its paper gives them, and its rule for heads that are no power of two.
TEST(Positions, AlibiFallsByItsSlopes) {
  const std::vector<std::pair<int64_t, std::vector<double>>> published = {
      {8, {1. / 2, 1. / 4, 1. / 8, 1. / 16, 1. / 32, 1. / 64, 1. / 128, 1. / 256}},
      {2, {1. / 16, 1. / 256}},
      {3, {1. / 16, 1. / 256, 1. / 4}},
      {6, {1. / 4, 1. / 16, 1. / 64, 1. / 256, 1. / 2, 1. / 8}},
      {1, {1. / 256}}};
  for (const auto& [H, slopes] : published) {
    const auto position = make_position(config_of({{"position", "alibi"}}), 5, H);
    const Tensor q = at::zeros({1, 1, H, 5}, at::kDouble), k = at::zeros({1, 4, H, 5}, at::kDouble);
    const Tensor fall = position->scores(q, k, at::full({1, 1}, 7), at::tensor({0, 3, 6, 7}).unsqueeze(0));
    const Tensor expected = -at::tensor(slopes, at::kDouble).view({1, H, 1, 1}) * at::tensor({7., 4., 1., 0.});
    EXPECT_CLOSE(fall, expected, 1e-14) << H << " heads";
  }
}

TEST(Positions, ScoresOfGroupedHeads) {
  const Tensor q = normal({2, 3, 6, 5}, 1, at::kDouble), k = normal({2, 7, 2, 5}, 2, at::kDouble),
               v = normal({2, 7, 2, 4}, 3, at::kDouble);
  const Tensor all_k = k.repeat_interleave(3, 2), all_v = v.repeat_interleave(3, 2);
  const Tensor scores = at::einsum("bnhk,bmhk->bhnm", {q, all_k}) / std::sqrt(5.);
  EXPECT_CLOSE(dot_scores(q, k), scores, 1e-13);
  EXPECT_CLOSE(weighted_sum(scores, v), at::einsum("bhnm,bmhv->bnhv", {scores, all_v}), 1e-13);
}

TEST(Positions, RefusesWhatCannotBe) {
  const auto make = [](const Json& options, int64_t K) { make_position(config_of(options), K, 2); };
  for (const char* name : {"yarn", "ntk_by_parts", "llama3", "dynamic_ntk"}) {
    EXPECT_ERROR(make({{"position", name}}, 8), text("position ", name, ": original_length is 0, expected the tokens"));
  }
  for (const char* name : {"ntk", "dynamic_ntk", "ntk_by_parts"}) {
    EXPECT_ERROR(make({{"position", name}, {"original_length", 8}}, 2), "expected another for heads of size 2");
  }
  for (const char* name : {"rerope", "leaky_rerope"}) {
    EXPECT_ERROR(make({{"position", name}}, 8), text("position ", name, ": rerope_window is 0, expected a distance"));
  }
  EXPECT_ERROR(make({{"position", "yarn"}, {"original_length", 9}, {"beta_slow", 40}}, 8), "less than beta_fast");
  EXPECT_ERROR(make({{"position", "llama3"}, {"original_length", 9}, {"low_freq_factor", 4}}, 8),
               "less than high_freq");
  EXPECT_ERROR(make({{"position", "ntk"}}, 7), "head size is 7, rotary embedding needs an even one");
  EXPECT_ERROR(make({{"position", "yarn"}, {"rope_theta", 0}}, 8), "position yarn: rope_theta is 0.0, expected a base");
  EXPECT_ERROR(config_of({{"position", "yarm"}}), "did you mean 'yarn'");
  EXPECT_ERROR(config_of({{"factor", 0.5}}), "factor is 0.5, expected a number of at least 1");
  make({{"rope_theta", 0}}, 7);  // none
}

}  // namespace
}  // namespace lineal
