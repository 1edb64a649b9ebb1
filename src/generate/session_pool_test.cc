#include "generate/session_pool.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/registry.h"
#include "testing/testing.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

/// Of every mixer, in float64: rounding grows from layer to layer, and some choose by their sums.
std::shared_ptr<LanguageModel> make_model(at::ScalarType type = at::kDouble) {
  LanguageModelConfig config;
  config.vocab_size = 37;
  config.hidden_size = 24;
  config.intermediate_size = 31;
  config.pre_conv = true;
  config.initializer_range = 0.3;
  std::string plan;
  for (const MixerSpec* spec : all<MixerSpec>()) plan += (plan.empty() ? "" : ", ") + spec->name;
  if (type == at::kFloat) plan = "ttt_linear, ttt_mlp, linear_attention, delta_net, gla, mamba, performer, attention";
  config.layers = parse_plan(plan);
  at::manual_seed(11);
  auto model = std::make_shared<LanguageModel>(config);
  model->to(type);
  return model;
}

void expect_close(const Session& found, const Session& expected) {
  EXPECT_EQ(found.tokens(), expected.tokens());
  EXPECT_EQ(found.recent(), expected.recent());
  EXPECT_CLOSE(found.logits(), expected.logits(), expected.logits().scalar_type() == at::kFloat ? 1e-5 : 1e-10);
}

/// Sessions that come, go on in different company and leave have read what each has read alone.
class SessionPoolOf : public testing::TestWithParam<at::ScalarType> {};

TEST_P(SessionPoolOf, SessionsGoOnAsAlone) {
  const auto model = make_model(GetParam());
  std::vector<Session> alone;
  SessionPool pool(model, 3);
  std::vector<int64_t> row;
  for (int64_t i = 0; i < 3; ++i) {
    Session session(model);
    for (int64_t t = 0; t <= 4 * i; ++t) session.read((5 * t + i) % 37);
    alone.push_back(session);
    row.push_back(pool.add(session));
  }
  EXPECT_EQ(pool.free(), 0);
  EXPECT_ERROR(pool.add(Session(model)), "all of its 3 rows are taken");
  const std::vector<std::vector<size_t>> company = {{2, 0}, {1}, {0, 1, 2}, {1, 0}};
  for (int64_t n = 0; n < 24; ++n) {
    std::vector<int64_t> rows, tokens;
    for (const size_t i : company[static_cast<size_t>(n) % company.size()]) {
      rows.push_back(row[i]);
      tokens.push_back((7 * n + static_cast<int64_t>(i)) % 37);
      alone[i].read(tokens.back());
    }
    pool.read(rows, tokens);
    for (size_t i = 0; i < alone.size(); ++i) expect_close(pool.at(row[i]), alone[i]);
  }
  Session left = pool.take(row[1]);
  expect_close(left, alone[1]);
  left.read(3), alone[1].read(3);
  expect_close(left, alone[1]);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.add(left), row[1]);
}

INSTANTIATE_TEST_SUITE_P(Types, SessionPoolOf, testing::Values(at::kFloat, at::kDouble));

TEST(SessionPool, MistakesLeaveItAsItWas) {
  const auto model = make_model();
  EXPECT_ERROR(SessionPool(model, 0), "capacity is 0");
  SessionPool pool(model, 2);
  EXPECT_ERROR(pool.add(Session(make_model())), "of another model");
  Session session(model);
  session.read(1);
  const int64_t row = pool.add(session);
  EXPECT_ERROR(pool.read({row, row}, {1, 2}), "comes twice");
  EXPECT_ERROR(pool.read({1 - row}, {1}), "holds no session");
  EXPECT_ERROR(pool.read({row}, {37}), "token id 37 at [0, 0] is out of range");
  EXPECT_ERROR(pool.read({row}, {1, 2}), "tokens is [2], expected [B=1]");
  EXPECT_ERROR(pool.take(5), "row 5 holds no session");
  expect_close(pool.take(row), session);
}

}  // namespace
}  // namespace lineal
