// Pixels and SentencePiece: tokenizers of other data than bytes, alone and as a user trains and measures with them.
#include <ATen/ATen.h>

#include <bit>
#include <cmath>

#include "core/config.h"
#include "core/registry.h"
#include "data/token_store.h"
#include "testing/gzip_of.h"
#include "testing/program.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Args = std::vector<std::string>;
using Ids = std::vector<int64_t>;

/// Images of bytes; each size 32 bits, big endian.
std::string idx(const std::vector<int64_t>& sizes, const std::string& bytes, char type = 8) {
  std::string file = {0, 0, type, static_cast<char>(sizes.size())};
  for (const int64_t size : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8) file += static_cast<char>(size >> shift & 255);
  }
  return file + bytes;
}

std::string counted(int64_t count) {
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) bytes += static_cast<char>(i * 5);
  return bytes;
}

/// A SentencePiece model written by hand, in the wire format of its ModelProto: piece, score, type (1 normal,
/// 2 unknown, 3 control, 4 user defined, 6 byte).
std::string pieces(const std::vector<std::tuple<std::string, float, char>>& list) {
  std::string model;
  for (const auto& [piece, score, type] : list) {
    const auto bits = std::bit_cast<uint32_t>(score);
    std::string entry = "\x0a" + std::string(1, static_cast<char>(piece.size())) + piece + "\x15";
    for (int shift = 0; shift < 32; shift += 8) entry += static_cast<char>(bits >> shift & 255);
    entry += std::string("\x18") + type;
    model += "\x0a" + std::string(1, static_cast<char>(entry.size())) + entry;
  }
  return model;
}

const std::string kModel = pieces({{"<unk>", 0.f, 2},
                                   {"<s>", 0.f, 3},
                                   {"</s>", 0.f, 3},
                                   {"[MASK]", 0.f, 4},
                                   {"\xe2\x96\x81the", -1.f, 1},
                                   {"\xe2\x96\x81s", -2.f, 1},
                                   {"ea", -2.f, 1},
                                   {"\xe2\x96\x81", -4.f, 1},
                                   {"s", -4.f, 1},
                                   {"e", -4.f, 1},
                                   {"a", -4.f, 1},
                                   {"t", -4.f, 1},
                                   {"h", -4.f, 1}});

class Tokenizers : public ::testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& bytes) const {
    write_atomic(folder_ / name, bytes);
    return path(name);
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  ProgramResult lineal(const Args& args) const { return run_program(args, folder_.path()); }
  Args training(const std::string& data, const Args& more) const {
    Args args = {"train",
                 data,
                 "--out",
                 path("run"),
                 "--layers",
                 "linear_attention",
                 "--hidden-size",
                 "8",
                 "--num-attention-heads",
                 "2",
                 "--intermediate-size",
                 "12",
                 "-t",
                 "1",
                 "--batch-size",
                 "2",
                 "--steps",
                 "3",
                 "-c",
                 "16"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  Ids first_document(const std::string& data) const {
    TokenStoreOptions options;
    options.cache_folder.clear();
    const auto store = TokenStore::open({data}, *find<TokenizerSpec>("pixels").make(), "pixels", options);
    documents_ = store->documents();
    Ids ids(static_cast<size_t>(store->document(0).size()));
    store->copy(store->document(0), ids.data());
    return ids;
  }
  TemporaryFolder folder_;
  mutable int64_t documents_ = 0;
};

TEST_F(Tokenizers, AnImageIsADocument) {
  const Ids first = {256, 0, 5, 10, 15, 20, 25};
  EXPECT_EQ(first_document(file("a.idx", idx({4, 2, 3}, counted(24)))), first);
  EXPECT_EQ(documents_, 4);
  EXPECT_EQ(first_document(file("b-ubyte.gz", gzip_of(idx({2, 1, 2, 3}, counted(12))))), first);
  EXPECT_EQ(documents_, 2);
  EXPECT_EQ(first_document(file("raw", counted(6))), first);
  EXPECT_EQ(documents_, 1);
}

TEST_F(Tokenizers, BadImages) {
  const auto refused_file = [&](const std::string& bytes, const Args& parts) {
    const std::string name = file("x.idx", bytes);
    return throws_error([&] { first_document(name); }, parts);
  };
  EXPECT_TRUE(refused_file(idx({4, 2, 3}, counted(20)), {"x.idx", "image 4 of 4", "2 of 6"}));
  EXPECT_TRUE(refused_file(idx({4, 2, 3}, counted(25)), {"x.idx", "more bytes"}));
  EXPECT_TRUE(refused_file(idx({4}, counted(4)), {"x.idx", "labels"}));
  EXPECT_TRUE(refused_file(idx({4, 2}, counted(8), 13), {"x.idx", "type 13", "8"}));
  EXPECT_TRUE(refused_file(idx({4, 2, 3}, "").substr(0, 9), {"x.idx", "header"}));
}

TEST_F(Tokenizers, BitsPerDimension) {
  const std::string data = file("a.idx", idx({40, 2, 3}, counted(240)));
  const ProgramResult trained = lineal(training(data, {"--tokenizer", "pixels"}));
  ASSERT_EQ(trained.code, 0) << trained.err;
  const ProgramResult result = lineal({"eval", "-m", path("run"), data, "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json found = Json::parse(result.out);
  EXPECT_EQ(found["predicted_tokens"], 240);
  EXPECT_NEAR(found["bits_per_dimension"].get<double>(), found["nats_per_token"].get<double>() / std::log(2.), 1e-12);
  EXPECT_NE(lineal({"eval", "-m", path("run"), data}).out.find("bits/dimension"), std::string::npos);
}

TEST_F(Tokenizers, PiecesOfWords) {
  const auto tokenizer = find<TokenizerSpec>("sentencepiece").make(file("x.model", kModel));
  EXPECT_EQ(tokenizer->vocab_size(), 13);
  EXPECT_EQ(tokenizer->encode("the sea"), Ids({4, 5, 6}));
  EXPECT_EQ(tokenizer->encode("seat"), Ids({5, 6, 11}));
  EXPECT_EQ(tokenizer->decode({4, 5, 6, 11}), " the seat");
  EXPECT_EQ(tokenizer->decode({1, 4, 2, 3, 0}), " the\xef\xbf\xbd");
  EXPECT_EQ(tokenizer->special().mask, 3);
  EXPECT_TRUE(throws_error([&] { tokenizer->decode({13}); }, {"13", "0 to 12"}));
  const auto other = find<TokenizerSpec>("sentencepiece").make(file("y.model", kModel + pieces({{"ta", -3.f, 1}})));
  EXPECT_NE(other->identity(), tokenizer->identity());
  EXPECT_TRUE(throws_error([&] { find<TokenizerSpec>("sentencepiece").make(); }, {"--tokenizer-file"}));
  EXPECT_TRUE(throws_error([&] { find<TokenizerSpec>("sentencepiece").make(path("absent")); }, {"absent"}));
  EXPECT_TRUE(
      throws_error([&] { find<TokenizerSpec>("sentencepiece").make(file("t", "no model")); }, {"SentencePiece"}));
}

TEST_F(Tokenizers, WordPerplexity) {
  std::string words;
  for (int i = 0; i < 200; ++i) words += i % 3 == 0 ? "the sea\n" : "a seat the ";
  const std::string data = file("words.txt", words), model = file("x.model", kModel);
  EXPECT_TRUE(refused(lineal(training(data, {"--tokenizer", "sentencepiece"})), {"--tokenizer-file"}));
  const Args with_file = {"--tokenizer", "sentencepiece", "--tokenizer-file", model, "--save-every", "2"};
  ASSERT_EQ(lineal(training(data, with_file)).code, 0);
  std::filesystem::remove(model);
  EXPECT_EQ(read_file(folder_ / "run" / "checkpoints" / "step-3" / "tokenizer.model"), kModel);
  const std::string measured = file("split.txt", "the  sea seat");
  const ProgramResult result = lineal({"eval", "-m", path("run"), measured, "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json found = Json::parse(result.out);
  EXPECT_EQ(found["tokens"], 6);
  EXPECT_EQ(found["predicted_tokens"], 5);
  EXPECT_EQ(found["predicted_bytes"], 10) << "all but 'the'";
  EXPECT_DOUBLE_EQ(found["pieces_per_word"].get<double>(), 6 / 3.);
  EXPECT_NEAR(found["word_perplexity"].get<double>(), std::exp(2 * found["nats_per_token"].get<double>()), 1e-6);
  const ProgramResult resumed = lineal({"train", "--resume", path("run"), "--steps", "4"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(lineal({"generate", "-m", path("run"), "-p", "the", "-n", "3"}).code, 0);
}

TEST_F(Tokenizers, ModelsThatReadOtherTokensAreNotCompared) {
  const std::string data = file("text.txt", "the sea the seat the sea a seat the sea the seat");
  const auto trained = [&](const std::string& name, const Args& more) {
    Args args = training(data, more);
    *std::find(args.begin(), args.end(), path("run")) = path(name);
    const ProgramResult result = lineal(args);
    EXPECT_EQ(result.code, 0) << result.err;
    return path(name);
  };
  const auto pieces_of = [&](const std::string& name, const std::string& model) {
    return trained(name, {"--tokenizer", "sentencepiece", "--tokenizer-file", file(name + ".model", model)});
  };
  const std::string bytes = trained("bytes", {}), one = pieces_of("one", kModel), same = pieces_of("same", kModel),
                    other = pieces_of("other", kModel + pieces({{"ta", -3.f, 1}}));
  const auto compared = [&](const std::string& a, const std::string& b) {
    return std::vector{lineal({"eval", "-m", a, "-m", b, data}),
                       lineal({"bench", "propagation", "-m", a, "--other", b, data, "-c", "16"})};
  };
  for (const auto& result : compared(one, same)) EXPECT_EQ(result.code, 0) << result.err;
  for (const auto& result : compared(bytes, one)) {
    EXPECT_TRUE(refused(result, {one + " has the tokenizer sentencepiece", bytes + " has bytes", "the same tokens"}));
  }
  for (const auto& result : compared(one, other)) {
    EXPECT_TRUE(refused(result, {other + " has the tokenizer sentencepiece", one + " has one of another file"}));
  }
}

TEST_F(Tokenizers, PropagationReadsImagesAsTheyWereLearned) {
  const std::string data = file("a.idx", idx({4, 2, 3}, counted(24)));
  ASSERT_EQ(lineal(training(data, {"--tokenizer", "pixels"})).code, 0);
  const auto propagation = [&](const char* context) {
    return lineal({"bench", "propagation", "-m", path("run"), "--other", path("run"), data, "-c", context});
  };
  EXPECT_EQ(propagation("28").code, 0) << "four images of a begin and six pixels";
  EXPECT_TRUE(refused(propagation("29"), {"the text has 28 tokens"}));
}

}  // namespace
}  // namespace lineal
