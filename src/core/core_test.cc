#include <ATen/ATen.h>

#include "core/config.h"
#include "core/dims.h"
#include "core/error.h"
#include "core/parse.h"
#include "core/rows.h"
#include "core/segments.h"
#include "core/state.h"
#include "testing/testing.h"

namespace lineal {
namespace {

TEST(Errors, SuggestTheNearestName) {
  const std::vector<std::string> known = {"attention", "ttt_linear", "ttt_mlp"};
  EXPECT_EQ(nearest("ttt_liner", known), "ttt_linear");
  EXPECT_EQ(nearest("atention", known), "attention");
  EXPECT_EQ(nearest("convolution", known), "");
  EXPECT_EQ(nearest("ab", {"xy", "ax", "cab"}), "ax");
  EXPECT_EQ(nearest("ab", {"xy"}), "");
  EXPECT_EQ(nearest("cuont", {"count"}), "count");
  EXPECT_EQ(nearest("abcdef", {"abcxyz"}), "");
  EXPECT_EQ(nearest("a", {"b"}), "");
  EXPECT_EQ(nearest("", {"b"}), "");
  EXPECT_ERROR(fail_unknown("train", "mixer", "ttt_mpl", known),
               "train: unknown mixer 'ttt_mpl'; did you mean 'ttt_mlp'? (known: attention, ttt_linear, ttt_mlp)");
}

TEST(Errors, ANameIsOnOneLineOfBoundedLength) {
  EXPECT_ERROR(fail_unknown("x", "tensor", "a\nb\r\x7f", {"abc"}),
               "x: unknown tensor 'a?b?"
               "?' (known: abc)");
  std::vector<std::string> known(1000, std::string(100, 'k'));
  EXPECT_ERROR(fail_unknown("x", "tensor", std::string(10'000'000, 'z'), known),
               "x: unknown tensor '" + std::string(200, 'z') + "...' (known: k");
}

TEST(Errors, OfALongListOnlyTheFirst) {
  std::vector<std::string> known;
  for (int i = 0; i < 1000; ++i) known.push_back(text("name", i));
  EXPECT_ERROR(fail_unknown("who", "what", "nmae7", known), "(known: name0, name1, ");
  EXPECT_ERROR(fail_unknown("who", "what", "nmae7", known), ", ..., 1000 in all)");
}

TEST(DimsCheck, NamesTheTensorAndBothShapes) {
  Dims dims("delta_rule");
  dims.check(at::zeros({2, 3, 5, 7}), "BTHK", "q");
  EXPECT_EQ(dims['K'], 7);
  EXPECT_ERROR(dims.check(at::zeros({2, 4}), "BTHK", "k"), "delta_rule: k is [2, 4], expected [B=2, T=3, H=5, K=7]");
  EXPECT_ERROR(dims.check(at::zeros({2, 3, 5, 8}), "BTHK", "k"), "k is [2, 3, 5, 8]");
  EXPECT_ERROR(dims.check(Tensor(), "BT", "mask"), "mask is undefined, expected [B=2, T=3]");
  dims.check(at::zeros({2, 3, 5, 11}), "BTHV", "v");
}

struct Options : Config {
  int64_t count = 3;
  double rate = 0.5;
  bool on = true;
  std::string kind = "a";
  std::vector<Field> fields() override {
    return {{"count", &count, between(1, 10), "how many"},
            {"rate", &rate, at_least(0), "how fast"},
            {"on", &on, {}, "whether"},
            {"kind", &kind, one_of({"a", "b"}), "which"}};
  }
};

TEST(Configuration, ReadsWritesAndExplains) {
  Options options;
  options.read({{"count", 7}, {"kind", "b"}}, "here");
  EXPECT_EQ(options.write().dump(), R"({"count":7,"rate":0.5,"on":true,"kind":"b"})");
  EXPECT_NE(options.help().find("how many (an integer from 1 to 10)"), std::string::npos);
  for (auto& field : options.fields()) {
    if (field.name == "rate") field.parse("2", "flag");
  }
  EXPECT_EQ(options.rate, 2);
}

TEST(Configuration, RefusesWhatDoesNotFit) {
  Options options;
  EXPECT_ERROR(options.read({{"cuont", 7}}, "x.json"), "x.json: unknown field 'cuont'; did you mean 'count'?");
  EXPECT_ERROR(options.read({{"count", 0}}, "x.json"), "x.json: count is 0, expected an integer from 1 to 10");
  EXPECT_ERROR(options.read({{"count", std::string(100'000, 'z')}}, "x.json"),
               "x.json: count is \"" + std::string(199, 'z') + "..., expected an integer from 1 to 10");
  EXPECT_ERROR(options.read({{"count", 2.5}}, "x.json"), "count is 2.5");
  EXPECT_ERROR(options.read({{"count", UINT64_MAX}}, "x.json"), "count is 18446744073709551615");
  EXPECT_ERROR(options.read({{"count", "3"}}, "x.json"), "count is \"3\"");
  EXPECT_ERROR(options.read({{"rate", -1}}, "x.json"), "expected a number of at least 0");
  EXPECT_ERROR(options.read({{"on", 1}}, "x.json"), "expected true or false");
  EXPECT_ERROR(options.read({{"kind", "c"}}, "x.json"), "expected one of a b");
  EXPECT_ERROR(options.read({{"kind", "ab"}}, "x.json"), "expected one of a b; did you mean 'a'?");
  EXPECT_ERROR(options.read(Json::array(), "x.json"), "expected an object");
  EXPECT_ERROR(options.fields()[0].parse("many", "flag"), "flag: count is 'many'");
}

TEST(Configuration, TakesNumbersAsPeopleTypeThem) {
  Options options;
  const auto set = [&](size_t field, const std::string& text) { options.fields()[field].parse(text, "flag"); };
  const std::vector<std::pair<std::string, double>> good = {{".7", 0.7}, {"1.", 1},     {"+1e-3", 1e-3},
                                                            {"2", 2},    {"1E3", 1000}, {"007", 7}};
  for (const auto& [text, value] : good) {
    set(1, text);
    EXPECT_EQ(options.rate, value) << text;
  }
  set(0, "+7");
  EXPECT_EQ(options.count, 7);
  set(2, "false");
  EXPECT_FALSE(options.on);
  for (const char* bad : {"", "+", "+-1", "inf", "nan", "1e999", "0x1", "1,5", " 1", "1 ", "--1", "."}) {
    EXPECT_ERROR(set(1, bad), std::string("flag: rate is '") + bad + "'");
  }
  for (const char* bad : {"2.5", "1e1", "99999999999999999999", "seven"}) EXPECT_ERROR(set(0, bad), "flag: count is '");
  EXPECT_ERROR(set(0, "-3"), "flag: count is -3, expected an integer from 1 to 10");
  EXPECT_ERROR(set(1, "-.5"), "rate is -0.5");
  EXPECT_ERROR(set(2, "1"), "on is '1', expected true or false");
}

TEST(Configuration, NamesBytesThatAreNotUtf8) {
  struct Free : Config {
    std::string word;
    std::vector<Field> fields() override { return {{"word", &word, {}, "any"}}; }
  } config;
  EXPECT_ERROR(config.fields()[0].parse("a\xff", "flag"), "flag: word is \"a\xef\xbf\xbd\", expected text");
  Options options;
  EXPECT_ERROR(options.fields()[0].parse("3\xff", "flag"), "flag: count is '3\xef\xbf\xbd'");
  EXPECT_ERROR(options.fields()[3].parse("\xff", "flag"), "expected one of a b");
  config.fields()[0].parse("\xc3\xa9", "flag");
  EXPECT_EQ(config.word, "\xc3\xa9");
}

TEST(Words, AreTrimmed) {
  EXPECT_EQ(trim(" \ta b\r\n"), "a b");
  EXPECT_EQ(trim("ab"), "ab");
  EXPECT_EQ(trim(" \n"), "");
}

State example(int64_t B, int64_t S, double value) {
  State state;
  state["position"] = at::full({B}, 5, at::kLong);
  State& layer = state.child("layers").child("0");
  layer["k"] = at::full({B, S, 3}, value);
  layer["W1"] = at::full({B, 2, 2, 4}, value + 1);
  return state;
}

TEST(StateValue, NamesRoundTrip) {
  const State state = example(2, 4, 1);
  const auto named = state.named();
  ASSERT_EQ(named.size(), 3u);
  EXPECT_EQ(named[1].first, "layers.0.k");
  const State again = State::from_named(named);
  EXPECT_CLOSE(again.child("layers").child("0").at("W1"), state.child("layers").child("0").at("W1"), 0);
  EXPECT_EQ(state.bytes(), 2 * 8 + (2 * 4 * 3 + 2 * 2 * 2 * 4) * 4);
  EXPECT_ERROR(state.at("posision"), "no part 'posision'");
  EXPECT_ERROR(state.child("layer"), "no child 'layer'");
}

TEST(StateValue, CloneIsIndependentAndForkRepeats) {
  const State state = example(2, 4, 1);
  State copy = state.clone();
  copy["position"].fill_(9);
  EXPECT_EQ(state.at("position")[0].item<int64_t>(), 5);
  copy["position"][1] = 8;
  const Tensor forked = copy.fork(3).at("position");
  EXPECT_CLOSE(forked, at::tensor({9, 9, 9, 8, 8, 8}), 0);
}

TEST(StateValue, RowsMoveBetweenBatchesOfDifferentLengths) {
  const State both = State::cat({example(2, 4, 1), example(1, 2, 7)});
  EXPECT_EQ(both.batch(), 3);
  const Tensor k = both.child("layers").child("0").at("k");
  EXPECT_EQ(k.sizes(), (std::vector<int64_t>{3, 4, 3}));
  EXPECT_CLOSE(k[2].select(1, 0), at::tensor({0.f, 0.f, 7.f, 7.f}), 0);
  State back = both.rows(at::tensor({2, 0}));
  EXPECT_EQ(back.batch(), 2);
  back.set_rows(at::tensor({1}), example(1, 5, 3));
  const Tensor set = back.child("layers").child("0").at("k").select(2, 1);
  EXPECT_CLOSE(set, at::tensor({0.f, 0.f, 0.f, 7.f, 7.f, 3.f, 3.f, 3.f, 3.f, 3.f}).reshape({2, 5}), 0);
}

TEST(StateValue, SetRowsWritesInPlace) {
  State pool = example(3, 2, 1);
  const Tensor k = pool.child("layers").child("0").at("k");
  pool.set_rows(at::tensor({2, 0}), example(2, 2, 7));
  EXPECT_TRUE(pool.child("layers").child("0").at("k").is_same(k));
  EXPECT_CLOSE(k.select(2, 0).select(1, 0), at::tensor({7.f, 1.f, 7.f}), 0);
}

TEST(RowsOfAPool, AreDifferentAndInIt) {
  const Rows rows({4, 0, 3}, 5);
  EXPECT_EQ(rows.count(), 3);
  EXPECT_EQ(rows.capacity(), 5);
  EXPECT_CLOSE(rows.index(), at::tensor({4, 0, 3}), 0);
  EXPECT_ERROR(Rows({4, 0, 4}, 5), "rows: 4 comes twice, expected different rows");
  EXPECT_ERROR(Rows({4, 5}, 5), "rows: 5 is out of range, the pool has 5");
  EXPECT_ERROR(Rows({4, -1}, 5), "rows: -1 is out of range");
  EXPECT_ERROR(Rows({}, 5), "rows: none given");
}

TEST(SegmentsOfACall, CountDocumentsAndPositions) {
  const Segments segments{at::tensor({0, 0, 1, 0, 1, 0, 0, 0, 0, 0}).reshape({2, 5}).to(at::kBool)};
  const Tensor position = at::tensor({10, 3});
  EXPECT_CLOSE(segments.positions(position, 5), at::tensor({10, 11, 0, 1, 0, 3, 4, 5, 6, 7}).reshape({2, 5}), 0);
  EXPECT_CLOSE(segments.documents(2, 5, at::kCPU), at::tensor({0, 0, 1, 1, 2, 0, 0, 0, 0, 0}).reshape({2, 5}), 0);
  EXPECT_TRUE(segments.slice(0, 2).none());
  EXPECT_FALSE(segments.slice(2, 3).none());
  EXPECT_CLOSE(Segments{}.positions(position, 2), at::tensor({10, 11, 3, 4}).reshape({2, 2}), 0);
}

}  // namespace
}  // namespace lineal
