// The laws over the whole table: a new mixer is covered untouched. And each law over mixers broken on purpose.
#include "testing/laws.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <cctype>

#include "core/error.h"
#include "core/registry.h"
#include "mixers/linear.h"
#include "testing/testing.h"

namespace lineal {
namespace {

struct Case {
  std::string mixer;
  Json options;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.mixer << c.options.dump(); }

/// Options that take another path than the defaults do.
const std::vector<Case>& special_cases() {
  static const std::vector<Case> list = {
      {"attention", {{"sliding_window", 4}, {"num_attention_heads", 4}, {"num_key_value_heads", 2}}},
      {"attention", {{"rope_theta", 0}, {"num_key_value_heads", 1}}},
      {"attention", {{"position", "dynamic_ntk"}, {"original_length", 4}, {"num_key_value_heads", 2}}},
      {"attention", {{"position", "rerope"}, {"rerope_window", 3}, {"sliding_window", 9}}},
      {"attention", {{"position", "leaky_rerope"}, {"rerope_window", 3}, {"factor", 4}, {"num_key_value_heads", 1}}},
      {"attention", {{"position", "alibi"}, {"key_norm", true}, {"sliding_window", 5}}},
      {"attention", {{"position", "yarn"}, {"factor", 4}, {"original_length", 7}, {"log_n", true}}},
      {"attention", {{"sliding_window", 4}, {"sink_tokens", 3}, {"num_key_value_heads", 2}}},
      {"attention", {{"head_dim", 5}, {"qkv_bias", true}, {"out_bias", true}, {"rotary_dims", 4}, {"scale", 0.7}}},
      {"attention", {{"position", "dynamic_ntk"}, {"original_length", 4}, {"rotary_dims", 4}}},
      {"attention", {{"position", "yarn"}, {"factor", 4}, {"original_length", 7}, {"truncate", false}}},
      {"ttt_linear", {{"mini_batch_size", 5}, {"share_qk", true}, {"use_gate", true}}},
      {"ttt_linear", {{"mini_batch_size", 3}, {"form", "primal"}}},
      {"ttt_linear",
       {{"mini_batch_size", 1},
        {"eta", "fixed"},
        {"ttt_base_lr", 0.1},
        {"initial_weights", "zero"},
        {"norm", false},
        {"residual", false},
        {"bias", false}}},
      {"ttt_mlp", {{"mini_batch_size", 3}, {"share_qk", true}, {"use_gate", true}}},
      {"linear_attention", {{"feature_map", "elu1"}, {"normalize", true}, {"chunk_size", 7}}},
      {"delta_net", {{"short_conv", false}, {"chunk_size", 3}}},
      {"retention", {{"expand_k", 0.5}, {"rope_theta", 0}, {"short_conv", true}, {"use_gate", false}}},
      {"gla", {{"short_conv", true}, {"expand_k", 1}, {"num_attention_heads", 3}, {"chunk_size", 7}}},
      {"gated_delta_net", {{"short_conv", false}, {"expand_v", 0.5}, {"chunk_size", 3}}},
      {"mamba2", {{"state_size", 3}, {"conv_kernel", 1}, {"num_heads", 6}, {"n_groups", 3}, {"chunk_size", 3}}},
      {"mamba2", {{"use_bias", true}, {"use_conv_bias", false}, {"time_step_least", 0.6}, {"time_step_most", 0.9}}},
      {"performer",
       {{"feature_map", "hyperbolic"}, {"num_features", 7}, {"num_key_value_heads", 2}, {"chunk_size", 3}}},
      {"performer",
       {{"feature_map", "trig"}, {"num_features", 64}, {"projection", "h-orf"}, {"stabilizer", 1}, {"chunk_size", 7}}},
      {"performer", {{"feature_map", "relu"}, {"num_features", 11}, {"projection", "g-orf"}, {"row_norms", "sqrt"}}},
      {"performer", {{"feature_map", "tanh"}, {"projection", "none"}, {"renormalize", false}, {"rope_theta", 0}}},
      {"performer_bidirectional", {{"feature_map", "sigmoid"}, {"num_features", 7}, {"num_key_value_heads", 1}}},
      {"rwkv7", {{"num_attention_heads", 3}, {"decay_low_rank_dim", 3}, {"a_low_rank_dim", 2}, {"chunk_size", 7}}},
      {"titans", {{"mini_batch_size", 1}, {"short_conv", false}, {"expand_k", 0.5}, {"use_gate", false}}},
      {"s4d", {{"state_size", 4}, {"init", "legs"}, {"discretization", "bilinear"}, {"chunk_size", 3}}},
      {"s4", {{"state_size", 6}, {"rank", 2}, {"chunk_size", 3}}},
      {"s4_bidirectional", {{"state_size", 4}, {"chunk_size", 7}}},
      {"linformer", {{"sequence_length", 51}, {"num_mixtures", 5}, {"share_kv", true}, {"one_kv_head", true}}},
      {"linformer", {{"head_dim", 5}, {"num_mixtures", 7}}},
      {"reformer", {{"num_buckets", 2}, {"bucket_size", 3}, {"attend_across_buckets", false}, {"chunk_size", 7}}},
      {"reformer", {{"num_hashes", 2}, {"num_buckets", 4}, {"bucket_size", 2}, {"allow_duplicate_attention", false}}},
      {"mamba", {{"state_size", 3}, {"conv_kernel", 1}, {"chunk_size", 3}, {"time_step_rank", 2}}},
      {"mamba", {{"use_bias", true}, {"use_conv_bias", false}}},
      {"rwkv4", {{"attention_hidden_size", 11}}},
      {"vq_attention", {{"num_codes", 5}, {"window", 3}, {"chunk_size", 4}, {"key_size", 5}, {"value_size", 3}}},
      {"vq_attention", {{"num_codes", 3}, {"window", 2}, {"chunk_size", 1}, {"num_attention_heads", 3}, {"tau", 4}}},
      {"vq_attention",
       {{"aggregate", false}, {"window", 5}, {"chunk_size", 3}, {"use_gate", false}, {"input_norm", true}}},
  };
  return list;
}

/// Every mixer with its defaults, and with blocks of 5 tokens where it has blocks, so that no length is a multiple.
std::vector<Case> cases() {
  std::vector<Case> result;
  for (const MixerSpec* spec : all<MixerSpec>()) {
    result.push_back({spec->name, Json::object()});
    Json blocks = Json::object();
    for (const auto& name : spec->config()->names()) {
      if (name == "chunk_size" || name == "mini_batch_size") blocks[name] = 5;
    }
    if (!blocks.empty()) result.push_back({spec->name, blocks});
  }
  result.insert(result.end(), special_cases().begin(), special_cases().end());
  return result;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.mixer;
  for (const auto& [key, value] : info.param.options.items()) name += "_" + key + "_" + value.dump();
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

class Laws : public testing::TestWithParam<Case> {
 protected:
  static Subject subject(int64_t D) { return make_subject(find<MixerSpec>(GetParam().mixer), GetParam().options, D); }
};

TEST_P(Laws, Split) { EXPECT_EQ(split_law(subject(24)), ""); }
TEST_P(Laws, NoLeakAndThePastIsSeen) { EXPECT_EQ(past_law(subject(24)), ""); }
TEST_P(Laws, Segments) { EXPECT_EQ(segments_law(subject(24)), ""); }
TEST_P(Laws, Batch) { EXPECT_EQ(batch_law(subject(24)), ""); }
TEST_P(Laws, RoundTrip) { EXPECT_EQ(round_trip_law(subject(24)), ""); }
TEST_P(Laws, Gradients) { EXPECT_EQ(gradient_law(subject(24)), ""); }
TEST_P(Laws, ConstantState) { EXPECT_EQ(constant_state_law(subject(24)), ""); }
TEST_P(Laws, Step) { EXPECT_EQ(step_law(subject(24)), ""); }

/// reset_parameters leaves no parameter and no buffer as it was, and making a mixer draws no numbers before it.
TEST_P(Laws, ResetIsAFreshMixer) {
  at::NoGradGuard no_grad;
  const auto again = make_mixer(GetParam().mixer, GetParam().options, 24);
  for (Tensor& parameter : again->parameters()) parameter.fill_(NAN);
  for (Tensor& buffer : again->buffers()) buffer.fill_(NAN);
  at::manual_seed(3);
  again->reset_parameters(0.02);
  at::manual_seed(3);
  const auto other = make_mixer(GetParam().mixer, GetParam().options, 24);
  const auto expected = other->named_parameters();
  for (const auto& item : again->named_parameters()) {
    EXPECT_EQ(bit_difference(item.value(), *expected.find(item.key())), "") << item.key();
  }
  const auto buffers = other->named_buffers();
  for (const auto& item : again->named_buffers()) {
    EXPECT_EQ(bit_difference(item.value(), *buffers.find(item.key())), "") << item.key();
  }
}

/// bfloat16 autocast reaches the projections and leaves the state as it is.
TEST_P(Laws, StateStaysFloat32UnderAutocast) {
  at::NoGradGuard no_grad;
  const Subject float64 = subject(24);
  float64.mixer->to(at::kFloat);
  const Tensor x = normal({2, 21, 24}, 1);
  State wide = float64.mixer->initial_state(2), state = wide;
  const Tensor expected = float64.mixer->forward(x, wide);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const Tensor y = float64.mixer->forward(x, state);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_CLOSE_RMS(y, expected, 0.1);  // roughly right: 8 bits, through the inner steps of some
  for (const auto& [name, part] : state.named()) {
    EXPECT_EQ(part.scalar_type(), part.is_floating_point() ? at::kFloat : at::kLong) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, Laws, testing::ValuesIn(cases()), case_name);

// ---- mutants -------------------------------------------------------------------------------------------------------

enum class Flaw {
  none,
  sees_the_future,
  sees_no_past,
  forgets_between_calls,
  counts_blocks_from_the_call,
  ignores_documents,
  restarts_every_row,
  forgets_the_running_document,
  mixes_rows,
  writes_into_the_old_state,
  remembers_outside_the_state,
  cuts_the_gradient_in_time,
  cuts_the_gradient_of_the_start,
  cuts_the_gradient_of_a_parameter,
  grows,
  keeps_the_call_alive,
  shares_a_parameter,
};

/// h_t = 0.8 h_{t-1} + tanh(W x_t), h_0 learned; y_t = h_t + x_t; every fourth token of a document counts twice, as a
/// mixer with blocks would have it. Obeys every law, but for its flaw.
class Toy : public Mixer {
 public:
  Toy(int64_t D, Flaw flaw) : flaw_(flaw) {
    map_ = register_module("map", linear(D, D));
    start_ = register_parameter("start", at::randn({D}));
    reset_linear(map_, 0.3);
  }

  State initial_state(int64_t B) const override {
    State state;
    const Tensor start = start_.unsqueeze(0).expand({B, start_.size(0)});
    state["h"] = flaw_ == Flaw::shares_a_parameter ? start.contiguous() : start.clone(at::MemoryFormat::Contiguous);
    state["position"] = at::zeros({B}, at::kLong);
    if (flaw_ == Flaw::grows) state["past"] = at::zeros({B, 0, 1}, start_.options());
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const int64_t B = x.size(0), T = x.size(1);
    const Tensor at_call = flaw_ == Flaw::counts_blocks_from_the_call ? at::zeros({B}, at::kLong) : state["position"];
    const Tensor position = segments.positions(at_call, T);
    const Tensor twice = 1 + (position.remainder(4) == 3).to(x.scalar_type()).unsqueeze(2);  // [B, T, 1]
    Tensor input = twice * map_(x).tanh(), h = state["h"];
    if (flaw_ == Flaw::forgets_between_calls) h = initial_state(B)["h"];
    if (flaw_ == Flaw::cuts_the_gradient_of_a_parameter) input = twice * at::linear(x, map_->weight.detach()).tanh();
    if (flaw_ == Flaw::remembers_outside_the_state && hidden_.defined() && hidden_.size(0) == B) h = h + 1e-3 * hidden_;
    std::vector<Tensor> y;
    for (int64_t t = 0; t < T; ++t) {
      h = 0.8 * restarted(h, segments, t) + input.select(1, t);
      if (flaw_ == Flaw::cuts_the_gradient_in_time) h = h.detach() + input.select(1, t) - input.select(1, t).detach();
      y.push_back(flaw_ == Flaw::sees_no_past ? input.select(1, t) : h);
    }
    Tensor out = at::stack(y, 1) + x;
    if (flaw_ == Flaw::sees_the_future && T > 1)
      out = at::cat({out.slice(1, 0, T - 1) + 1e-6 * x.slice(1, 1), out.slice(1, T - 1)}, 1);
    if (flaw_ == Flaw::mixes_rows) out = out + 1e-6 * h.mean(0);
    hidden_ = h.detach();
    if (flaw_ == Flaw::keeps_the_call_alive) h = at::stack(y, 1).select(1, T - 1);
    if (flaw_ == Flaw::writes_into_the_old_state) {
      state["h"].copy_(h);
    } else {
      state["h"] = h;
    }
    state["position"] = segments.positions(state["position"], T).select(1, -1) + 1;
    if (flaw_ == Flaw::grows) state["past"] = at::cat({state["past"], at::zeros({B, T, 1}, x.options())}, 1);
    return out;
  }

  void reset_parameters(double) override {}

 private:
  Tensor restarted(const Tensor& h, const Segments& segments, int64_t t) const {
    if (segments.none() || flaw_ == Flaw::ignores_documents) return h;
    Tensor starts = segments.starts.select(1, t);
    if (flaw_ == Flaw::restarts_every_row) starts = starts.any().expand_as(starts);
    if (flaw_ == Flaw::forgets_the_running_document && t == 0) starts = at::ones_like(starts);
    const Tensor start = flaw_ == Flaw::cuts_the_gradient_of_the_start ? start_.detach() : start_;
    return at::where(starts.unsqueeze(1), start, h);
  }

  Flaw flaw_;
  LinearMap map_{nullptr};
  Tensor start_, hidden_;
};

Subject toy(Flaw flaw, int64_t D = 5) {
  auto mixer = std::make_shared<Toy>(D, flaw);
  mixer->to(at::kDouble);
  return {mixer, D};
}

using Law = std::string (*)(const Subject&);

TEST(Mutants, TheToyItselfObeys) {
  for (const Law law :
       {split_law, past_law, segments_law, batch_law, round_trip_law, gradient_law, constant_state_law}) {
    EXPECT_EQ(law(toy(Flaw::none)), "");
  }
}

void expect_caught(Law law, Flaw flaw, const std::string& part) {
  const std::string found = law(toy(flaw));
  EXPECT_NE(found.find(part), std::string::npos) << "expected '" << part << "' in '" << found << "'";
}

TEST(Mutants, Split) {
  expect_caught(split_law, Flaw::forgets_between_calls, "split at 1: output");
  expect_caught(split_law, Flaw::counts_blocks_from_the_call, "split at 1: output");
  expect_caught(split_law, Flaw::sees_the_future, "split at 1: output");
  expect_caught(split_law, Flaw::forgets_the_running_document, "with documents: output");
}

TEST(Mutants, NoLeakAndThePastIsSeen) {
  expect_caught(past_law, Flaw::sees_the_future, "d x of later tokens is not 0");
  expect_caught(past_law, Flaw::sees_no_past, "d x of earlier tokens is 0");
  expect_caught(past_law, Flaw::cuts_the_gradient_in_time, "d x of earlier tokens is 0");
  Subject claims_to_mix_nothing = toy(Flaw::none), claims_to_look_ahead = toy(Flaw::none);
  claims_to_mix_nothing.mixes = false;
  EXPECT_NE(past_law(claims_to_mix_nothing).find("earlier tokens is not 0"), std::string::npos);
  claims_to_look_ahead.causal = false;
  EXPECT_NE(past_law(claims_to_look_ahead).find("later tokens is 0"), std::string::npos);
}

TEST(Mutants, Segments) {
  expect_caught(segments_law, Flaw::ignores_documents, "another token before the document");
  expect_caught(segments_law, Flaw::restarts_every_row, "packed and alone");
  expect_caught(segments_law, Flaw::forgets_the_running_document, "tokens of the running document");
}

TEST(Mutants, Batch) { expect_caught(batch_law, Flaw::mixes_rows, "in a batch and alone: output"); }

TEST(Mutants, RoundTrip) {
  expect_caught(round_trip_law, Flaw::writes_into_the_old_state, "changed the tensors of the state");
  expect_caught(round_trip_law, Flaw::remembers_outside_the_state, "clone: output");
}

TEST(Mutants, Gradients) {
  expect_caught(gradient_law, Flaw::cuts_the_gradient_in_time, "gradient of x");
  expect_caught(gradient_law, Flaw::cuts_the_gradient_of_a_parameter, "gradient of map.weight");
  expect_caught(gradient_law, Flaw::cuts_the_gradient_of_the_start, "gradient of start");
}

TEST(Mutants, ConstantState) {
  expect_caught(constant_state_law, Flaw::grows, "after 1 tokens, expected");
  expect_caught(constant_state_law, Flaw::keeps_the_call_alive, "after 3 tokens: state part h of 40 bytes keeps 80");
  expect_caught(constant_state_law, Flaw::shares_a_parameter, "initial state: state part h is a view of start");
}

}  // namespace
}  // namespace lineal
