// lineal train-tokenizer, and a model that learns, is measured and writes with what it made.
#include "core/config.h"
#include "core/registry.h"
#include "data/tokenizer.h"
#include "testing/program.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Args = std::vector<std::string>;

class TrainTokenizer : public ::testing::Test {
 protected:
  TrainTokenizer() {
    std::string words;
    for (int i = 0; i < 900; ++i) {
      words += i % 7 == 0 ? "the sea,\n" : i % 3 == 0 ? "a caf\xc3\xa9 near the " : "seat ";
      words += std::to_string(i * 37 % 1000) + " ";
    }
    write_atomic(folder_ / "text.txt", words);
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  ProgramResult lineal(const Args& args) const { return run_program(args, folder_.path()); }
  ProgramResult learn(const std::string& type, const std::string& size, const std::string& out) const {
    return lineal(
        {"train-tokenizer", "--data", path("text.txt"), "--type", type, "--vocab-size", size, "-o", path(out)});
  }
  /// Trains with it, measures, generates; returns the measured bits per byte.
  double use(const std::string& tokenizer, const std::string& file) const {
    const std::string run = path("run_" + tokenizer);
    const ProgramResult trained = lineal({"train",
                                          path("text.txt"),
                                          "--out",
                                          run,
                                          "--tokenizer",
                                          tokenizer,
                                          "--tokenizer-file",
                                          path(file),
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
                                          "16"});
    EXPECT_EQ(trained.code, 0) << trained.err;
    std::filesystem::remove_all(path(file));
    const ProgramResult measured = lineal({"eval", "-m", run, path("text.txt"), "--json"});
    EXPECT_EQ(measured.code, 0) << measured.err;
    const ProgramResult written = lineal({"generate", "-m", run, "-p", "the ", "-n", "3"});
    EXPECT_EQ(written.code, 0) << written.err;
    const ProgramResult resumed = lineal({"train", "--resume", run, "--steps", "4"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    const Json found = Json::parse(measured.out);
    EXPECT_EQ(found["predicted_bytes"], static_cast<int64_t>(read_file(path("text.txt")).size()));
    return found["bits_per_byte"].get<double>();
  }
  TemporaryFolder folder_;
};

TEST_F(TrainTokenizer, ByteBpe) {
  const ProgramResult first = learn("byte_bpe", "300", "folder");
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_NE(first.out.find("300 tokens"), std::string::npos);
  ASSERT_EQ(learn("byte_bpe", "300", "file.json").code, 0);
  EXPECT_EQ(read_file(path("file.json")), read_file(path("folder/tokenizer.json"))) << "deterministic";
  const auto tokenizer = find<TokenizerSpec>("bpe").make(path("folder"));
  EXPECT_EQ(tokenizer->vocab_size(), 300);
  EXPECT_EQ(tokenizer->special().end, 0);
  EXPECT_EQ(tokenizer->encode(" the").size(), 1u);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("the sea\xff")), "the sea\xff");
  EXPECT_GT(use("bpe", "folder"), 1);
  EXPECT_TRUE(refused(learn("byte_bpe", "300", "file.json"), {"file.json exists"}));
  EXPECT_TRUE(refused(learn("wordpiece", "300", "x"), {"--type", "byte_bpe"}));
  EXPECT_TRUE(refused(lineal({"train-tokenizer", path("absent"), "-o", path("y")}), {"absent"}));
  EXPECT_FALSE(std::filesystem::exists(path("y/tokenizer.json")));
}

TEST_F(TrainTokenizer, SentencePiece) {
  for (const std::string type : {"unigram", "bpe"}) {
    const ProgramResult first = learn(type, "310", type + ".model");
    ASSERT_EQ(first.code, 0) << first.err;
    ASSERT_EQ(learn(type, "310", type).code, 0);
    EXPECT_EQ(read_file(path(type + ".model")), read_file(path(type + "/tokenizer.model"))) << "deterministic";
    const auto tokenizer = find<TokenizerSpec>("sentencepiece").make(path(type + ".model"));
    EXPECT_EQ(tokenizer->vocab_size(), 310);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("the  sea\n\xe2\x82\xac")), " the  sea\n\xe2\x82\xac");
  }
  EXPECT_TRUE(refused(learn("unigram", "100000", "big.model"), {"sentencepiece", "--vocab-size 100000"}));
  EXPECT_FALSE(std::filesystem::exists(path("big.model")));
}

}  // namespace
}  // namespace lineal
