// Models of proteins as a user trains and measures them: FASTA, masked tokens, parts, baseline, attention.
#include <ATen/ATen.h>

#include <cmath>
#include <random>

#include "bench/approximation.h"
#include "core/config.h"
#include "data/token_store.h"
#include "interop/load.h"
#include "testing/gzip_of.h"
#include "testing/program.h"
#include "testing/run_content.h"

namespace lineal {
namespace {

using Args = std::vector<std::string>;

/// Proteins whose next letter is mostly a function of the one before: there is something to learn.
std::string proteins(int64_t count) {
  const std::string letters = "ACDEFGHIKLMNPQRSTVWY";
  std::mt19937_64 random(3);
  std::string fasta;
  for (int64_t i = 0; i < count; ++i) {
    fasta += ">p" + std::to_string(i) + " by hand\n";
    size_t letter = random() % 20;
    for (uint64_t t = 0, length = 20 + random() % 60; t < length; ++t) {
      fasta += letters[letter];
      letter = random() % 4 == 0 ? random() % 20 : (letter + 7) % 20;
    }
    fasta += "\n";
  }
  return fasta;
}

class Proteins : public ::testing::Test {
 protected:
  Proteins() { write_atomic(folder_ / "small.faa.gz", gzip_of(proteins(300))); }
  ProgramResult lineal(const Args& args) const { return run_program(args, folder_.path()); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  Args training(const std::string& run, const Args& more = {}) const {
    Args args = {"train",
                 path("small.faa.gz"),
                 "--out",
                 path(run),
                 "--tokenizer",
                 "amino_acids",
                 "--hidden-size",
                 "16",
                 "--intermediate-size",
                 "24",
                 "--num-attention-heads",
                 "2",
                 "-c",
                 "64",
                 "-t",
                 "1",
                 "--pack",
                 "none",
                 "--validation",
                 "0.1",
                 "--test",
                 "0.1"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  Args masked(const std::string& run, const Args& more = {}) const {
    Args args = training(
        run, {"--objective", "masked_lm", "--layers", "performer_bidirectional(num_features=32)", "--lr", "0.01"});
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  Json evaluated(const Args& args) const {
    Args all = {"eval", "-t", "1", "--json"};
    all.insert(all.end(), args.begin(), args.end());
    const ProgramResult result = lineal(all);
    EXPECT_EQ(result.code, 0) << result.err;
    return result.code == 0 ? Json::parse(result.out) : Json();
  }

  TemporaryFolder folder_;
};

TEST_F(Proteins, MaskedModel) {
  const ProgramResult trained = lineal(masked("run", {"--steps", "60", "--batch-size", "8", "--pre-conv", "true"}));
  ASSERT_EQ(trained.code, 0) << trained.err;
  EXPECT_NE(trained.err.find("documents are cut to their first 64 tokens"), std::string::npos) << trained.err;
  const Json test = evaluated({"-m", path("run"), "--part", "test", "--baseline", "frequency"});
  const Json& by_frequency = test["frequency_baseline"];
  EXPECT_NEAR(by_frequency["perplexity"].get<double>(), 20, 0.6);
  EXPECT_LT(test["perplexity"].get<double>(), 0.8 * by_frequency["perplexity"].get<double>());
  EXPECT_GT(test["accuracy"].get<double>(), 2 * by_frequency["accuracy"].get<double>());
  EXPECT_FALSE(test.contains("bits_per_byte"));
  // 15 % of the letters, without begin and end.
  const double letters = test["tokens"].get<double>() - 2 * test["documents"].get<double>();
  EXPECT_NEAR(test["predicted_tokens"].get<double>() / letters, 0.15, 0.01);
  EXPECT_EQ(evaluated({"-m", path("run"), "--part", "test"})["nats_per_token"], test["nats_per_token"]);
  EXPECT_NE(evaluated({"-m", path("run"), "--part", "test", "-s", "1"})["nats_per_token"], test["nats_per_token"]);
  const Json other = evaluated({"-m", path("run"), "--part", "validation"});
  EXPECT_EQ(other["documents"].get<int64_t>() + test["documents"].get<int64_t>() +
                evaluated({"-m", path("run"), "--part", "train"})["documents"].get<int64_t>(),
            300);

  const ProgramResult shown = lineal({"eval", "-m", path("run"), path("small.faa.gz"), "--baseline", "frequency"});
  EXPECT_NE(shown.out.find("nats per masked token"), std::string::npos) << shown.out;
  EXPECT_NE(shown.out.find("accuracy"), std::string::npos) << shown.out;
  EXPECT_NE(shown.out.find("by frequency    perplexity"), std::string::npos) << shown.out;
  EXPECT_TRUE(refused(lineal({"generate", "-m", path("run"), "-p", "MK"}), {"masked_lm", "causal_lm"}));

  const ProgramResult compared =
      lineal({"eval", "-m", path("run"), path("small.faa.gz"), "--similarity", path("s.json"), "--limit", "2000"});
  ASSERT_EQ(compared.code, 0) << compared.err;
  const Json similarity = Json::parse(read_file(folder_ / "s.json"));
  EXPECT_EQ(similarity["letters"], "ARNDCQEGHILKMFPSTWYV");
  EXPECT_EQ(similarity["blosum62"][17][17], 11);
  EXPECT_LE(std::abs(similarity["correlation"].get<double>()), 1);
  EXPECT_NE(compared.out.find("correlation"), std::string::npos);
  const auto again = [&](const Args& more) {
    Args args = {"eval", "-m", path("run"), path("small.faa.gz"), "--similarity", path("s.json"), "--limit", "2000"};
    args.insert(args.end(), more.begin(), more.end());
    return lineal(args);
  };
  const Json told = Json::parse(again({"--json"}).out);
  for (const char* key : {"correlation", "sequences", "tokens"}) EXPECT_EQ(told[key], similarity[key]) << key;
  EXPECT_TRUE(refused(again({"--max-context", "9", "--buckets", "3", "-s", "2"}),
                      {"--similarity does not go with --max-context, --buckets, --seed;"}));
  EXPECT_TRUE(refused(again({"--part", "test"}), {"--similarity does not go with --part;"}));
  EXPECT_TRUE(refused(again({"--baseline", "frequency"}), {"--similarity does not go with --baseline;"}));
  write_atomic(folder_ / "few.jsonl", "{\"sequence\": \"ARND\"}\n");
  EXPECT_TRUE(refused(lineal({"eval", "-m", path("run"), path("few.jsonl"), "--similarity", path("s.json"),
                              "--text-field", "sequence"}),
                      {"1 sequences lack pairs of amino acids"}));
}

TEST_F(Proteins, LongOnesOfAMaskedModel) {
  Args args = masked("run", {"--steps", "2", "--batch-size", "2"});
  *std::find(args.begin(), args.end(), "performer_bidirectional(num_features=32)") = "linformer(sequence_length=64)";
  ASSERT_EQ(lineal(args).code, 0);
  EXPECT_TRUE(refused(lineal({"eval", "-m", path("run"), path("small.faa.gz")}), {"linformer", "sequence_length 64"}));
  const Json found = evaluated({"-m", path("run"), path("small.faa.gz"), "--max-context", "64", "--buckets", "64"});
  EXPECT_EQ(found["documents"], 300);
  ASSERT_EQ(found["positions"].size(), 1u);
  EXPECT_EQ(found["positions"][0]["end"], 64);
}

TEST_F(Proteins, GoingOnIsExact) {
  const Args flags = {"--batch-size", "3", "--accumulate", "2", "--save-every", "4",       "--eval-every", "2",
                      "--log-every",  "1", "--warmup",     "0", "--schedule",   "constant"};
  Args whole = masked("whole", {"--steps", "7"}), half = masked("half", {"--steps", "4"});
  whole.insert(whole.end(), flags.begin(), flags.end());
  half.insert(half.end(), flags.begin(), flags.end());
  ASSERT_EQ(lineal(whole).code, 0);
  ASSERT_EQ(lineal(half).code, 0);
  const ProgramResult resumed = lineal({"train", "--resume", path("half"), "--steps", "7"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  const auto expected = run_content(folder_ / "whole"), found = run_content(folder_ / "half");
  EXPECT_TRUE(expected.count("checkpoints/step-7/model.safetensors"));
  for (const auto& [name, bytes] : expected) EXPECT_TRUE(found.count(name) && found.at(name) == bytes) << name;
  EXPECT_EQ(found.size(), expected.size());
}

TEST_F(Proteins, CausalModel) {
  const ProgramResult trained =
      lineal(training("run", {"--layers", "linear_attention", "--steps", "30", "--batch-size", "4"}));
  ASSERT_EQ(trained.code, 0) << trained.err;
  const Json test = evaluated({"-m", path("run"), "--part", "test", "--baseline", "frequency"});
  EXPECT_EQ(test["predicted_tokens"].get<int64_t>(), test["tokens"].get<int64_t>() - test["documents"].get<int64_t>());
  EXPECT_GT(test["accuracy"].get<double>(), 0);
  EXPECT_TRUE(test["frequency_baseline"].contains("accuracy"));
  const ProgramResult continued = lineal({"generate", "-m", path("run"), "-p", "MKV", "-n", "5", "--json"});
  EXPECT_EQ(continued.code, 0) << continued.err;
  EXPECT_EQ(Json::parse(continued.out)["read_tokens"], 4) << "the begin too";
}

TEST_F(Proteins, Packed) {
  for (const std::string pack : {"restart", "join"}) {
    Args args = masked(pack, {"--steps", "2", "--batch-size", "2"});
    *(std::find(args.begin(), args.end(), "none")) = pack;
    const ProgramResult trained = lineal(args);
    EXPECT_EQ(trained.code, 0) << trained.err;
  }
  // The state that runs on sees other proteins: the loss is another.
  const auto loss = [&](const std::string& run) {
    const std::string lines = read_file(folder_ / run / "metrics.jsonl");
    return Json::parse(lines.substr(0, lines.find('\n')))["loss"].get<double>();
  };
  EXPECT_NE(loss("restart"), loss("join"));
}

TEST_F(Proteins, TokensPerSecondAreThoseOfTheDocuments) {
  write_atomic(folder_ / "two.fasta", ">one\nMKVAC\n>two\n" + std::string(40, 'A') + "\n");
  const auto tokens = [&](Args args) {  // of the first step
    args[1] = path("two.fasta");
    for (const char* flag : {"--validation", "--test"}) *(std::find(args.begin(), args.end(), flag) + 1) = "0";
    args.insert(args.end(), {"--steps", "2", "--batch-size", "2", "--log-every", "1"});
    const ProgramResult result = lineal(args);
    EXPECT_EQ(result.code, 0) << result.err;
    const std::string lines = read_file(folder_ / args[3] / "metrics.jsonl");
    const Json line = Json::parse(lines.substr(0, lines.find('\n')));
    return line["tokens_per_second"].get<double>() * line["elapsed"].get<double>();
  };
  EXPECT_NEAR(tokens(training("causal", {"--layers", "linear_attention"})), 5 + 2 - 1 + 40 + 2 - 1, 1e-6);
  EXPECT_NEAR(tokens(masked("masked")), 5 + 2 + 40 + 2, 1e-6);
}

TEST_F(Proteins, PropagationReadsThemAsTheyWereLearned) {
  ASSERT_EQ(lineal(training("run", {"--layers", "attention*2", "--steps", "2", "--batch-size", "2"})).code, 0);
  ASSERT_EQ(lineal({"convert", "-m", path("run"), "--layers", "performer*2", "-o", path("new")}).code, 0);
  write_atomic(folder_ / "some.fasta", ">one\nMKVAC\n>two\nACDEFGH\n");
  const auto propagation = [&](const std::string& context) {
    return lineal({"bench", "propagation", "-m", path("run"), "--other", path("new"), path("some.fasta"), "-c", context,
                   "-t", "1", "--json"});
  };
  EXPECT_TRUE(refused(propagation("17"), {"the text has 16 tokens"}));
  const ProgramResult result = propagation("16");
  ASSERT_EQ(result.code, 0) << result.err;
  const LoadedModel a = load_model(path("run")), b = load_model(path("new"));
  TokenStoreOptions in_memory;
  in_memory.cache_folder.clear();
  const auto store = TokenStore::open({path("some.fasta")}, *a.tokenizer, "amino_acids", in_memory);
  const Tensor tokens = at::empty({1, 16}, at::kLong), starts = at::zeros({1, 16}, at::kBool);
  store->copy({0, 16}, tokens.mutable_data_ptr<int64_t>());
  starts[0][store->document(1).begin] = true;
  const auto expected = propagate_error(*a.model, *b.model, tokens, {starts});
  const Json found = Json::parse(result.out);
  ASSERT_EQ(found.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_NEAR(found[i]["propagated"].get<double>(), expected[i].propagated, 1e-5 * expected[i].propagated);
  }
}

TEST_F(Proteins, Mistakes) {
  Args bytes = masked("run");
  *(std::find(bytes.begin(), bytes.end(), "amino_acids")) = "bytes";
  EXPECT_TRUE(refused(lineal(bytes), {"masked_lm", "bytes", "amino_acids"}));
  EXPECT_TRUE(refused(lineal(training("run", {"--layers", "performer_bidirectional"})), {"causal_lm", "looks ahead"}));
  EXPECT_TRUE(
      refused(lineal(masked("run", {"--mask-share", "0.9", "--random-share", "0.2"})), {"mask_share", "at most 1"}));
  write_atomic(folder_ / "bad.fasta", ">one\nMKV\n>two\nM9\n");
  Args bad = masked("run");
  bad[1] = path("bad.fasta");
  EXPECT_TRUE(refused(lineal(bad), {"bad.fasta: line 4: column 2", "'9'", "'two'"}));
  ASSERT_EQ(lineal(masked("run", {"--steps", "1", "--batch-size", "2"})).code, 0);
  const std::string step = path("run") + "/checkpoints/step-1";
  EXPECT_TRUE(refused(lineal({"eval", "-m", step, "--part", "test"}), {"no run", "runs/NAME"}));
  EXPECT_TRUE(refused(lineal({"eval", "-m", path("run"), "--part", "tset"}), {"--part"}));
  EXPECT_TRUE(refused(lineal({"eval", "-m", path("run"), path("bad.fasta")}), {"line 4: column 2"}));
}

}  // namespace
}  // namespace lineal
