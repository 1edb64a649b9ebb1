#include "generate/session.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "backbones/model_files.h"
#include "core/file.h"
#include "core/registry.h"
#include "core/safetensors.h"
#include "generate/generate.h"
#include "testing/temporary_folder.h"
#include "testing/testing.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Ids = std::vector<int64_t>;

const char* const kPlan =
    "ttt_linear(num_attention_heads=3,mini_batch_size=7), ttt_mlp(num_attention_heads=1,mini_batch_size=5)";

std::shared_ptr<LanguageModel> make_model(const std::string& plan = kPlan, int64_t vocab_size = 263) {
  LanguageModelConfig config;
  config.vocab_size = vocab_size;
  config.hidden_size = 18;
  config.intermediate_size = 23;
  config.initializer_range = 0.3;
  config.pre_conv = true;
  config.layers = parse_plan(plan);
  at::manual_seed(11);
  return std::make_shared<LanguageModel>(config);
}

Ids ids(int64_t count, int64_t seed = 1) {
  Ids result;
  for (int64_t i = 0; i < count; ++i) result.push_back((i * i * 31 + i * 17 + seed * 5) % 263);
  return result;
}

void expect_same(const Session& a, const Session& b) {
  EXPECT_EQ(a.tokens(), b.tokens());
  EXPECT_EQ(a.recent(), b.recent());
  EXPECT_EQ(bit_difference(a.logits(), b.logits()), "");
  const auto x = a.state().named(), y = b.state().named();
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(x[i].first, y[i].first);
    EXPECT_EQ(bit_difference(x[i].second, y[i].second), "") << x[i].first;
  }
}

TEST(Session, ReadingIsTheModel) {
  const auto model = make_model("ttt_linear(num_attention_heads=3,mini_batch_size=64)");
  const Ids text = ids(2111);  // two chunks
  Session session(model);
  session.read(text);
  at::NoGradGuard no_grad;
  State state = model->initial_state(1);
  const Tensor logits = model->forward(at::tensor(text, at::kLong).unsqueeze(0), state);
  EXPECT_CLOSE(session.logits(), logits[0][-1], 1e-4);
  EXPECT_EQ(session.tokens(), 2111);
  EXPECT_EQ(session.recent(), std::deque<int64_t>(text.end() - 1024, text.end()));
}

TEST(Session, LoadedGoesOnBitForBit) {
  const TemporaryFolder folder;
  const std::string attention =
      "attention(num_attention_heads=3,num_key_value_heads=1), attention(num_attention_heads=1,sliding_window=5), "
      "mamba";
  for (const auto& [plan, before] : std::vector<std::pair<std::string, int64_t>>{
           {kPlan, 1}, {kPlan, 13}, {"ttt_linear(num_attention_heads=3)*2", 1031}, {attention, 1}, {attention, 13}}) {
    SCOPED_TRACE(text(plan, " after ", before));
    const auto model = make_model(plan);
    Session session(model);
    session.read(ids(before));
    session.save(folder / "x.state");
    Session loaded = Session::load(folder / "x.state", model);
    expect_same(loaded, session);
    for (const int64_t token : ids(9, 4)) {
      session.read(token);
      loaded.read(token);
    }
    session.read(ids(29, 2));
    loaded.read(ids(29, 2));
    expect_same(loaded, session);
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>({"x.state"}));
}

TEST(Session, ForkIsReplay) {
  const auto model = make_model();
  Session session(model);
  session.read(ids(23));
  auto forks = session.fork(3);
  const auto parts = session.state().named(), copies = forks[1].state().named();
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_FALSE(parts[i].second.is_alias_of(copies[i].second)) << parts[i].first << " is shared";
  }
  for (size_t i = 0; i < forks.size(); ++i) forks[i].read(ids(11, static_cast<int64_t>(i) + 2));
  for (size_t i = 0; i < forks.size(); ++i) {
    Session replay(model);
    replay.read(ids(23));
    replay.read(ids(11, static_cast<int64_t>(i) + 2));
    expect_same(forks[i], replay);
  }
  Session untouched(model);
  untouched.read(ids(23));
  expect_same(session, untouched);
}

TEST(Session, RefusesTokensAndStaysAsItWas) {
  const auto model = make_model();
  Session session(model), same(model);
  EXPECT_TRUE(throws_error([&] { session.logits(); }, {"nothing has been read yet"}));
  EXPECT_TRUE(throws_error([&] { session.save("/nowhere"); }, {"nothing has been read yet"}));
  session.read(ids(5));
  same.read(ids(5));
  EXPECT_TRUE(throws_error([&] { session.read({1, 263}); }, {"263", "0 to 262"}));
  EXPECT_TRUE(throws_error([&] { session.read(-1); }, {"-1"}));
  expect_same(session, same);
}

TEST(Session, RefusesAnotherModel) {
  const TemporaryFolder folder;
  const auto model = make_model();
  Session session(model);
  session.read(ids(5));
  session.save(folder / "x.state");
  const std::string ours = fingerprint(*model);
  {
    at::NoGradGuard no_grad;
    model->parameters()[3].flatten()[0] += 1e-3;
  }
  EXPECT_TRUE(throws_error([&] { Session::load(folder / "x.state", model); },
                           {"another model", ours, fingerprint(*model), "layers ttt_linear, ttt_mlp;"}));
}

TEST(Session, RefusesDamage) {
  const TemporaryFolder folder;
  const auto model = make_model();
  Session session(model);
  session.read(ids(5));
  session.save(folder / "x.state");
  const std::string bytes = read_file(folder / "x.state");
  const auto refuses = [&](const std::vector<std::string>& parts) {
    return throws_error([&] { Session::load(folder / "x.state", model); }, parts);
  };
  for (const size_t size : {size_t{0}, size_t{5}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    write_atomic(folder / "x.state", std::string_view(bytes).substr(0, size));
    EXPECT_TRUE(refuses({"x.state"})) << size;
  }
  for (const size_t at : {bytes.size() - 1, bytes.size() * 2 / 3, bytes.find("\"tokens\":\"5") + 10}) {
    std::string bad = bytes;
    bad[at] ^= 1;
    write_atomic(folder / "x.state", bad);
    EXPECT_TRUE(refuses({"damaged"})) << at;
  }
  write_atomic(folder / "x.state", "not a state at all, but text");
  EXPECT_TRUE(refuses({"x.state"}));
  save_safetensors(folder / "x.state", {{"W", at::ones({3})}});
  EXPECT_TRUE(refuses({"no metadata 'format'"}));
  save_safetensors(folder / "x.state", {{"W", at::ones({3})}}, {{"format", "lineal-state-9"}});
  EXPECT_TRUE(refuses({"lineal-state-9", "lineal-state-1"}));
}

TEST(Generate, SavedInTheMiddleGoesOnTheSame) {
  const TemporaryFolder folder;
  const auto model = make_model("ttt_linear(num_attention_heads=3,mini_batch_size=5)", 256);
  const auto tokenizer = find<TokenizerSpec>("bytes").make();
  SamplerConfig config;
  config.temp = 0;
  config.repeat_penalty = 1.3;
  const auto sampler = [&](const Session& session) {
    Sampler result(config, 1);
    for (const int64_t token : session.recent()) result.observe(token);
    return result;
  };
  Session whole(model);
  whole.read(tokenizer->encode("Once upon"));
  Session half = whole.fork(1)[0];
  auto first = sampler(whole);
  GenerateOptions options;
  options.length = 21;
  std::string streamed;
  options.on_text = [&](std::string_view piece) { streamed += piece; };
  const Generation all = generate(whole, *tokenizer, first, options);
  EXPECT_EQ(streamed, all.text);
  EXPECT_EQ(all.tokens.size(), 21u);
  EXPECT_EQ(all.finish, "length");
  EXPECT_EQ(whole.tokens(), 30);

  options.length = 8;
  auto second = sampler(half);
  Ids tokens = generate(half, *tokenizer, second, options).tokens;
  half.save(folder / "x.state");
  Session loaded = Session::load(folder / "x.state", model);
  auto third = sampler(loaded);
  options.length = 13;
  for (const int64_t token : generate(loaded, *tokenizer, third, options).tokens) tokens.push_back(token);
  EXPECT_EQ(tokens, all.tokens);
  expect_same(loaded, whole);
}

}  // namespace
}  // namespace lineal
