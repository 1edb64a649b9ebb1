// The laws over learned positions and whole blocks, whose feed-forward part may have a state of its own.
#include <ATen/ATen.h>

#include <cmath>

#include "backbones/block.h"
#include "backbones/position_table.h"
#include "core/error.h"
#include "testing/laws.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t kWidth = 12, kPositions = 100;

struct Case {
  std::string name, plan, norm, ffn, activation;
  bool ffn_bias, parallel, pre_conv, positions;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class Layers : public Mixer {
 public:
  explicit Layers(const Case& c) {
    const BlockConfig config = {.hidden_size = kWidth,
                                .intermediate_size = 17,
                                .norm = c.norm,
                                .eps = 1e-3,
                                .pre_conv = c.pre_conv,
                                .conv_kernel = 3,
                                .ffn = c.ffn,
                                .activation = c.activation,
                                .ffn_bias = c.ffn_bias,
                                .parallel_residual = c.parallel};
    if (c.positions) positions_ = register_module("positions", std::make_shared<PositionTable>(kPositions, kWidth));
    block_ = register_module("block", std::make_shared<Block>(config, parse_plan(c.plan)[0]));
  }

  State initial_state(int64_t B) const override {
    State state = positions_ ? positions_->initial_state(B) : State();
    state.child("block") = block_->initial_state(B);
    return state;
  }
  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    check_input("block", x, state, kWidth);
    const Tensor placed = positions_ ? positions_->forward(x, state, segments) : x;
    return block_->forward(placed, state.child("block"), segments);
  }
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override {
    check_input("block", x, pool, kWidth, &rows);
    const Tensor placed = positions_ ? positions_->forward(x, pool, {}, &rows) : x;
    return block_->step(placed, pool.child("block"), rows);
  }
  void reset_parameters(double deviation) override {
    if (positions_) positions_->reset_parameters(deviation);
    block_->reset_parameters(deviation);
  }

 private:
  std::shared_ptr<PositionTable> positions_;
  std::shared_ptr<Block> block_;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {"rwkv", "rwkv4(attention_hidden_size=7)", "layer", "channel_mix", "silu", false, false, false, true},
      {"channel_mix_alone", "identity", "layer", "channel_mix", "silu", false, false, false, false},
      {"parallel", "delta_net(num_attention_heads=3)", "rms", "channel_mix", "silu", false, true, true, true},
      {"mlp", "mamba(state_size=3)", "layer", "mlp", "gelu_tanh", true, true, false, true},
      {"swiglu", "linear_attention(num_attention_heads=2)", "layer", "swiglu", "gelu", true, false, true, true},
  };
  return list;
}

class BlockLaws : public testing::TestWithParam<Case> {
 protected:
  static Subject subject() {
    const auto layers = std::make_shared<Layers>(GetParam());
    at::NoGradGuard no_grad;
    layers->reset_parameters(1 / std::sqrt(static_cast<double>(kWidth)));
    for (Tensor& parameter : layers->parameters()) parameter.add_(0.1 * at::rand_like(parameter));
    layers->to(at::kDouble);
    layers->eval();
    return {layers, kWidth};
  }
};

TEST_P(BlockLaws, Split) { EXPECT_EQ(split_law(subject()), ""); }
TEST_P(BlockLaws, NoLeakAndThePastIsSeen) { EXPECT_EQ(past_law(subject()), ""); }
TEST_P(BlockLaws, Segments) { EXPECT_EQ(segments_law(subject()), ""); }
TEST_P(BlockLaws, Batch) { EXPECT_EQ(batch_law(subject()), ""); }
TEST_P(BlockLaws, RoundTrip) { EXPECT_EQ(round_trip_law(subject()), ""); }
TEST_P(BlockLaws, Gradients) { EXPECT_EQ(gradient_law(subject()), ""); }
TEST_P(BlockLaws, ConstantState) { EXPECT_EQ(constant_state_law(subject()), ""); }
TEST_P(BlockLaws, Step) { EXPECT_EQ(step_law(subject()), ""); }

INSTANTIATE_TEST_SUITE_P(Blocks, BlockLaws, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(PositionTable, BeyondItsRowsIsAnErrorThatChangesNothing) {
  PositionTable table(5, 3);
  at::NoGradGuard no_grad;
  table.reset_parameters(1);
  State state = table.initial_state(2);
  const Tensor x = normal({2, 4, 3}, 1).to(at::kFloat);
  table.forward(x, state, {});
  EXPECT_ERROR(table.forward(x, state, {}), "a document of 8 tokens or more, expected at most max_positions 5");
  EXPECT_TRUE(state["position"].equal(at::full({2}, 4, at::kLong)));
  const Rows row({1}, 2);
  table.forward(x.slice(0, 0, 1).slice(1, 0, 1), state, {}, &row);
  EXPECT_ERROR(table.forward(x.slice(0, 0, 1).slice(1, 0, 1), state, {}, &row), "a document of 6 tokens");
  EXPECT_TRUE(state["position"].equal(at::tensor({4, 5}, at::kLong)));
  Segments segments{at::zeros({2, 4}, at::kBool)};
  segments.starts.select(1, 0).fill_(true);
  EXPECT_CLOSE(table.forward(x, state, segments), x + table.weight.slice(0, 0, 4), 1e-7);
}

TEST(FeedForward, RefusesWhatItHasNoPlaceFor) {
  EXPECT_ERROR(make_feed_forward({"channel_mix", 4, 5, "silu", true}), "ffn_bias is true, expected false");
  EXPECT_ERROR(make_feed_forward({"channel_mix", 4, 5, "gelu", false}), "activation is gelu");
  EXPECT_ERROR(make_feed_forward({"mlb", 4, 5, "gelu", false}), "unknown ffn 'mlb'; did you mean 'mlp'?");
  EXPECT_ERROR(make_feed_forward({"mlp", 4, 5, "gleu", false}), "unknown activation 'gleu'");
}

}  // namespace
}  // namespace lineal
