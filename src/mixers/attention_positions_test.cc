// Attention with every position method, against one query at a time, written out from distances.
#include <ATen/ATen.h>
#include <sys/resource.h>

#include <cmath>

#include "core/error.h"
#include "mixers/mixer.h"
#include "positions/rope_scaling.h"
#include "testing/plain_layer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t D = 24, H = 4, H_kv = 2, K = 6;

std::shared_ptr<Mixer> make(Json options) {
  options["num_attention_heads"] = H;
  options["num_key_value_heads"] = H_kv;
  return random_mixer("attention", options, D);
}

/// q turned by `distance` times each frequency, times k.
double turned_product(const Tensor& q, const Tensor& k, const Frequencies& frequencies, double distance) {
  const Tensor angle = distance * frequencies.f, a = q.slice(0, 0, K / 2), b = q.slice(0, K / 2);
  const Tensor c = k.slice(0, 0, K / 2), d = k.slice(0, K / 2);
  return ((a * c + b * d) * angle.cos() + (a * d - b * c) * angle.sin()).sum().item<double>() * frequencies.scale *
         frequencies.scale;
}

/// The score of a query at place i and a key at place j, before K^{-1/2}.
double plain_score(const PositionConfig& c, const Tensor& q, const Tensor& k, int64_t h, double i, double j) {
  const double r = i - j, w = static_cast<double>(c.rerope_window);
  const auto plain = [&](double distance) { return turned_product(q, k, plain_frequencies(c, K), distance); };
  if (c.position == "rope") return plain(r);
  if (c.position == "linear") return plain(r / c.factor);
  if (c.position == "rerope") return plain(std::min(r, w));
  if (c.position == "leaky_rerope") return plain(r < w ? r : w + (r - w) / c.factor);
  if (c.position == "ntk") return turned_product(q, k, ntk_frequencies(c, K), r);
  if (c.position == "yarn") return turned_product(q, k, yarn_frequencies(c, K), r);
  if (c.position == "ntk_by_parts") return turned_product(q, k, ntk_by_parts_frequencies(c, K), r);
  if (c.position == "llama3") return turned_product(q, k, llama3_frequencies(c, K), r);
  if (c.position == "dynamic_ntk") {
    const auto L = static_cast<double>(c.original_length);
    const auto length = static_cast<int64_t>(std::ceil((i + 1) / L) * L);
    return turned_product(q, k, dynamic_ntk_frequencies(c, K, length), r);
  }
  const double product = (q * k).sum().item<double>();
  if (c.position == "none") return product;
  EXPECT_EQ(c.position, "alibi");
  return product - std::sqrt(static_cast<double>(K)) * r * std::exp2(-2.0 * static_cast<double>(h + 1));
}

Tensor plain_attention(Mixer& mixer, const Json& options, const Tensor& x, const Segments& segments) {
  PositionConfig c;
  Json fields = Json::object();
  for (const auto& [name, value] : options.items()) {
    if (c.has(name)) fields[name] = value;
  }
  c.read(fields, "test");
  const int64_t window = options.value("sliding_window", int64_t{1} << 30), sinks = options.value("sink_tokens", 0);
  const auto weights = mixer.named_parameters();
  const int64_t B = x.size(0), T = x.size(1);
  const Tensor place = segments.positions(at::zeros({B}, at::kLong), T), document = segments.documents(B, T, at::kCPU);
  Tensor q = plain_view(weights, "q", x, H, false), k = plain_view(weights, "k", x, H_kv, false);
  const Tensor v = plain_view(weights, "v", x, H_kv, false);
  if (options.value("key_norm", false)) k = std::sqrt(static_cast<double>(K)) * k / k.norm(2, {3}, true);
  Tensor o = at::zeros({B, T, H, K}, x.options());
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < T; ++t) {
      const auto i = place[b][t].item<double>();
      double larger = 1;
      if (options.value("log_n", false)) {
        larger = std::max(1.0, std::log(i + 1) / std::log(static_cast<double>(c.original_length)));
      }
      for (int64_t h = 0; h < H; ++h) {
        std::vector<double> scores;
        std::vector<int64_t> seen;
        for (int64_t s = 0; s <= t; ++s) {
          if (document[b][s].item<int64_t>() != document[b][t].item<int64_t>()) continue;
          const auto j = place[b][s].item<double>();
          const bool far = t - s >= window;
          if (far && j >= static_cast<double>(sinks)) continue;
          const double from = far ? std::min(i, static_cast<double>(sinks + window - 1)) : i;
          seen.push_back(s);
          scores.push_back(plain_score(c, larger * q[b][t][h], k[b][s][h / (H / H_kv)], h, from, j) /
                           std::sqrt(static_cast<double>(K)));
        }
        const Tensor p = at::tensor(scores, at::kDouble).softmax(0);
        o[b][t][h] = at::matmul(p, v[b].index_select(0, at::tensor(seen, at::kLong)).select(1, h / (H / H_kv)));
      }
    }
  }
  return at::linear(o.flatten(2), weights["o_proj.weight"]);
}

const std::vector<Json>& configurations() {
  static const std::vector<Json> list = {
      {{"position", "linear"}, {"factor", 3}},
      {{"position", "ntk"}, {"factor", 4}},
      {{"position", "yarn"}, {"factor", 4}, {"original_length", 9}, {"rope_theta", 50}},
      {{"position", "ntk_by_parts"}, {"factor", 4}, {"original_length", 9}},
      {{"position", "llama3"}, {"factor", 4}, {"original_length", 30}, {"rope_theta", 50}},
      {{"position", "dynamic_ntk"}, {"original_length", 5}},
      {{"position", "dynamic_ntk"}, {"original_length", 3}, {"ntk_constant", 2.5}, {"sliding_window", 7}},
      {{"position", "rerope"}, {"rerope_window", 4}, {"rope_theta", 50}},
      {{"position", "rerope"}, {"rerope_window", 4}, {"sliding_window", 9}, {"log_n", true}, {"original_length", 5}},
      {{"position", "leaky_rerope"}, {"rerope_window", 5}, {"factor", 4}, {"rope_theta", 50}},
      {{"position", "alibi"}},
      {{"position", "alibi"}, {"sliding_window", 6}},
      {{"position", "none"}, {"log_n", true}, {"original_length", 4}},
      {{"key_norm", true}},
      {{"sliding_window", 5}, {"sink_tokens", 3}},
      {{"sliding_window", 1}, {"sink_tokens", 1}},
      {{"sliding_window", 4}, {"sink_tokens", 6}, {"position", "yarn"}, {"factor", 2}, {"original_length", 9}},
  };
  return list;
}

TEST(AttentionPositions, EachIsItsFormula) {
  at::NoGradGuard no_grad;
  const int64_t B = 2, T = 23;
  const Tensor x = normal({B, T, D}, 1, at::kDouble);
  Segments segments{at::zeros({B, T}, at::kBool)};
  segments.starts[0][2] = true;
  segments.starts[1][0] = true;
  segments.starts[1][14] = true;
  segments.starts[1][15] = true;
  for (const Json& options : configurations()) {
    const auto mixer = make(options);
    for (const auto& documents : {Segments{}, segments}) {
      SCOPED_TRACE(options.dump() + (documents.none() ? "" : ", documents"));
      const Tensor expected = plain_attention(*mixer, options, x, documents);
      State state = mixer->initial_state(B);
      EXPECT_CLOSE(mixer->forward(x, state, documents), expected, 1e-11);
      State split = mixer->initial_state(B);
      std::vector<Tensor> y;
      for (const auto& [from, to] : {std::pair<int64_t, int64_t>{0, 1}, {1, 8}, {8, 22}, {22, 23}}) {
        y.push_back(mixer->forward(x.slice(1, from, to), split, documents.slice(from, to)));
      }
      EXPECT_CLOSE(at::cat(y, 1), expected, 1e-11);
      for (const auto& [name, part] : state.named()) EXPECT_CLOSE(split.at(name), part, 1e-11) << name;
    }
  }
}

TEST(AttentionPositions, AreRopeWhereTheyMustBe) {
  at::NoGradGuard no_grad;
  const Tensor x = normal({2, 23, D}, 1, at::kDouble);
  const Tensor expected = read_all(*make(Json::object()), x);
  for (const Json& options : std::vector<Json>{
           {{"position", "linear"}},
           {{"position", "ntk"}},
           {{"position", "yarn"}, {"original_length", 5}},
           {{"position", "ntk_by_parts"}, {"original_length", 5}},
           {{"position", "llama3"}, {"original_length", 5}},
           {{"position", "dynamic_ntk"}, {"original_length", 23}},
           {{"position", "rerope"}, {"rerope_window", 22}},
           {{"position", "leaky_rerope"}, {"rerope_window", 1}},
           {{"position", "leaky_rerope"}, {"rerope_window", 22}, {"factor", 9}},
           {{"log_n", true}, {"original_length", 23}},
           {{"sliding_window", 23}, {"sink_tokens", 3}},
       }) {
    EXPECT_CLOSE(read_all(*make(options), x), expected, 1e-12) << options.dump();
  }
  for (const Json& options : std::vector<Json>{
           {{"position", "linear"}, {"factor", 2}},
           {{"position", "ntk"}, {"factor", 2}},
           {{"position", "yarn"}, {"original_length", 5}, {"factor", 2}},
           {{"position", "ntk_by_parts"}, {"original_length", 5}, {"factor", 2}},
           {{"position", "llama3"}, {"original_length", 5}, {"factor", 2}},
           {{"position", "dynamic_ntk"}, {"original_length", 22}},
           {{"position", "rerope"}, {"rerope_window", 21}},
           {{"position", "leaky_rerope"}, {"rerope_window", 21}, {"factor", 9}},
           {{"log_n", true}, {"original_length", 22}},
           {{"key_norm", true}},
           {{"sliding_window", 19}, {"sink_tokens", 3}},
       }) {
    EXPECT_NE(difference(read_all(*make(options), x), expected, 1e-6), "") << options.dump();
  }
}

/// Beyond the window only the sinks are seen.
TEST(AttentionPositions, SinksStayInSight) {
  const int64_t T = 23, window = 5;
  for (const int64_t sinks : {0, 1, 3}) {
    const auto mixer = make({{"sliding_window", window}, {"sink_tokens", sinks}});
    const Tensor x = normal({1, T, D}, 1, at::kDouble).requires_grad_();
    const Tensor y = read_all(*mixer, x).select(1, T - 1);
    const Tensor reach = torch::autograd::grad({y.sum()}, {x})[0].abs().sum(at::IntArrayRef{0, 2});
    for (int64_t t = 0; t < T; ++t) EXPECT_EQ(reach[t].item<double>() != 0, t < sinks || t > T - 1 - window) << t;
  }
}

/// A probe's values are mixed as the layer's own would be, by every method.
TEST(AttentionPositions, ProbesAreMixedAlike) {
  at::NoGradGuard no_grad;
  const Tensor x = normal({2, 23, D}, 1, at::kDouble);
  for (const Json& options : configurations()) {
    const auto mixer = make(options);
    const auto weights = mixer->named_parameters();
    const Tensor y = read_all(*mixer, x);
    Mixer::Probe own, twice;
    twice.values = 2 * plain_view(weights, "v", x, H_kv, false).repeat_interleave(H / H_kv, 2);
    for (Mixer::Probe* probe : {&own, &twice}) {
      mixer->probe = probe;
      const Tensor probed = read_all(*mixer, x);
      EXPECT_CLOSE(probed, (probe == &own ? 1 : 2) * y, 1e-12) << options.dump();
      EXPECT_CLOSE(at::linear(probe->outputs.flatten(2), weights["o_proj.weight"]), probed, 1e-12) << options.dump();
    }
  }
}

/// Scores of all heads and pairs would take 275 MiB, and several times that before they are weights.
TEST(AttentionPositions, ScoresAreHeldInBlocks) {
  at::NoGradGuard no_grad;
  const int64_t T = 6000;
  for (const Json& options : std::vector<Json>{{{"position", "rerope"}, {"rerope_window", 64}},
                                               {{"position", "dynamic_ntk"}, {"original_length", 2048}},
                                               {{"position", "alibi"}}}) {
    Json two_heads = options;
    two_heads["num_attention_heads"] = 2;
    const auto mixer = make_mixer("attention", two_heads, 8);
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    read_all(*mixer, normal({1, T, 8}, 1));
    getrusage(RUSAGE_SELF, &after);
    EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 256 << 10) << "KiB, " << options.dump();
  }
}

TEST(AttentionPositions, RefusesWhatCannotBe) {
  EXPECT_ERROR(make({{"sink_tokens", 4}}), "sink_tokens is 4, expected 0 without a sliding_window");
  EXPECT_ERROR(make({{"log_n", true}}), "log_n needs original_length");
  EXPECT_ERROR(make({{"position", "alibi"}, {"sliding_window", 9}, {"sink_tokens", 2}}),
               "sink_tokens is 2, expected 0 with position alibi");
  EXPECT_ERROR(make({{"position", "rope2"}}), "position is \"rope2\", expected one of rope");
}

}  // namespace
}  // namespace lineal
