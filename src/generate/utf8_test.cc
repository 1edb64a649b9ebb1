#include "generate/utf8.h"

#include <gtest/gtest.h>

#include "testing/throws_error.h"

namespace lineal {
namespace {

const std::string kText = "a\u00e9\u20ac\U0001F600z\u07ff\u0800\uffff\U00010000\U0010ffff.";

template <class Stream>
std::string whole(Stream stream, const std::vector<std::string>& pieces) {
  std::string out;
  for (const auto& piece : pieces) out += stream.push(piece);
  return out + stream.finish();
}

/// Every text in two pieces, three pieces, and bytes.
std::vector<std::vector<std::string>> splits(const std::string& text) {
  std::vector<std::vector<std::string>> result = {{text}, {}};
  for (const char byte : text) result[1].emplace_back(1, byte);
  for (size_t i = 0; i <= text.size(); ++i) {
    for (size_t j = i; j <= text.size(); ++j)
      result.push_back({text.substr(0, i), text.substr(i, j - i), text.substr(j)});
  }
  return result;
}

TEST(Utf8Stream, EverySplitGivesWholeCharacters) {
  for (const auto& pieces : splits(kText)) {
    EXPECT_EQ(whole(Utf8Stream(), pieces), kText);
    Utf8Stream stream;
    std::string seen;
    for (const auto& piece : pieces) {
      const std::string out = stream.push(piece);
      EXPECT_EQ(whole(Utf8Stream(), {out}), out) << "a character is split";
      seen += out;
    }
    EXPECT_EQ(seen, kText) << "complete text is held back";
  }
}

TEST(Utf8Stream, HoldsBackOnlyTheUnfinishedCharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("x\xF0\x9F"), "x");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x80y"), "\U0001F600y");
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, ReplacesWhatIsNoCharacter) {
  const std::string r = "\uFFFD";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a\x80"
       "b",
       "a" + r + "b"},                             // a continuation alone
      {"\xC0\xAF", r + r},                         // overlong
      {"\xE0\x80\xAF", r + r + r},                 // overlong
      {"\xED\xA0\x80", r + r + r},                 // surrogate
      {"\xF4\x90\x80\x80", r + r + r + r},         // above U+10FFFF
      {"\xFF\xFE", r + r},                         //
      {"\xE2\x82x", r + "x"},                      // breaks off after two of three
      {"\xF0\x9F\x98\xE2\x82\xAC", r + "\u20ac"},  // breaks off where another begins
      {"\xF1\x80\x80\xE1\x80\xC2 ", r + r + r + " "},
  };
  for (const auto& [bytes, expected] : cases) {
    for (const auto& pieces : splits(bytes)) EXPECT_EQ(whole(Utf8Stream(), pieces), expected);
  }
}

TEST(StopStream, StopsOnEverySplit) {
  struct Case {
    std::vector<std::string> stops;
    std::string text, expected, matched;
  };
  const std::vector<Case> cases = {
      {{}, "all of it", "all of it", ""},
      {{"STOP"}, "go on", "go on", ""},
      {{"STOP"}, "go STO", "go STO", ""},
      {{"STOP"}, "go STOSTOP on STOP", "go STO", "STOP"},
      {{"aab"}, "xaaaab", "xaa", "aab"},
      {{"abcde", "cd"}, "xabcdef", "xab", "cd"},  // the first to be complete
      {{"cd", "bcd", "d"}, "abcd", "a", "bcd"},   // the longest of those
      {{"\n\n", "User:"}, "hi\nUser: x", "hi\n", "User:"},
      {{"\u20ac"}, "1\u20ac2", "1", "\u20ac"},
      {{"STOP"}, "STOP", "", "STOP"},
  };
  for (const auto& [stops, text, expected, matched] : cases) {
    for (const auto& pieces : splits(text)) {
      StopStream stream(stops);
      std::string out;
      for (const auto& piece : pieces) out += stream.push(piece);
      EXPECT_EQ(out + stream.finish(), expected);
      EXPECT_EQ(stream.matched(), matched);
      EXPECT_EQ(stream.stopped(), !matched.empty());
    }
  }
}

TEST(StopStream, HoldsBackOnlyWhatMayBeAStop) {
  StopStream stream({"</end>", "\n\n"});
  EXPECT_EQ(stream.push("a<b</"), "a<b");
  EXPECT_EQ(stream.push("e"), "");
  EXPECT_EQ(stream.push("m\n"), "</em");
  EXPECT_EQ(stream.push("x"), "\nx");
}

TEST(StopStream, RefusesStopsThatAreNoText) {
  EXPECT_TRUE(throws_error([] { StopStream({"a", ""}); }, {"stop string is empty"}));
  EXPECT_TRUE(throws_error([] { StopStream({"\x80"}); }, {"not UTF-8"}));
}

}  // namespace
}  // namespace lineal
