// lineal bench as a user runs it, at small sizes.
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "core/config.h"
#include "testing/program.h"

namespace lineal {
namespace {

using Names = std::vector<std::string>;

class BenchCommand : public testing::Test {
 protected:
  ProgramResult bench(Names args) const {
    args.insert(args.begin(), "bench");
    args.insert(args.end(), {"-t", "1"});
    return run_program(args, folder.path());
  }
  /// The mixer benchmark at small sizes.
  ProgramResult small(Names args) const {
    args.insert(args.end(), {"--hidden-size", "24", "--seconds", "5"});
    return bench(args);
  }
  TemporaryFolder folder;
};

TEST_F(BenchCommand, MeasuresMixersAtEveryLength) {
  const ProgramResult result = small({"ttt_linear(num_attention_heads=3)*2", "attention(num_attention_heads=3)",
                                      "--lengths", "8,32", "--batch-size", "2", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json rows = Json::parse(result.out);
  ASSERT_EQ(rows.size(), 4u);
  const char* const kKeys[] = {"train_tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s",
                               "train_mib",          "prefill_mib",          "state_kib"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(rows[i]["mixer"], i < 2 ? "ttt_linear(num_attention_heads=3)*2" : "attention(num_attention_heads=3)");
    EXPECT_EQ(rows[i]["length"], i % 2 == 0 ? 8 : 32);
    for (const char* key : kKeys) EXPECT_GT(rows[i][key].get<double>(), 0) << key;
  }
  // Two layers of two sequences: W and b with their steps, and a position.
  EXPECT_EQ(rows[0]["state_kib"].get<double>() * 1024, 2 * 2 * (4 * 2 * 3 * (64 + 8) + 8));
  EXPECT_EQ(rows[1]["state_kib"], rows[0]["state_kib"]);
  EXPECT_NEAR(rows[3]["state_kib"].get<double>() / rows[2]["state_kib"].get<double>(), 4, 0.1);
}

TEST_F(BenchCommand, PrintsARowPerLength) {
  const ProgramResult result = small({"identity", "--lengths", "8,32"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 5) << result.out;
  EXPECT_TRUE(result.out.ends_with("\nidentity: asks for no kernel\n")) << result.out;
  EXPECT_NE(result.out.find("width 24, batch 1, 1 thread,"), std::string::npos) << result.out;
  EXPECT_EQ(result.out.find(" - "), std::string::npos) << result.out;
}

TEST_F(BenchCommand, ColumnsStandBelowTheirTitlesBesideLongNames) {
  const std::string name = "performer_bidirectional(num_features=16)";
  const ProgramResult result = small({"identity", name, "--lengths", "8"});
  ASSERT_EQ(result.code, 0) << result.err;
  std::istringstream lines(result.out);
  std::string line, titles;
  std::getline(lines, line);
  std::getline(lines, titles);
  const size_t end = titles.find("length") + 6;
  ASSERT_EQ(end, name.size() + 2 + 6) << result.out;
  for (const std::string& mixer : {std::string("identity"), name}) {
    std::getline(lines, line);
    EXPECT_EQ(line.find(mixer), 0u) << result.out;
    EXPECT_EQ(line.find(" 8 ", mixer.size()), end - 2) << result.out;
  }
}

TEST_F(BenchCommand, SaysWhatItLeavesOut) {
  const ProgramResult result =
      bench({"s4(state_size=64)", "--lengths", "8,16777216", "--seconds", "0.01", "--hidden-size", "16"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.out.find("  left out: reading ("), std::string::npos) << result.out;
  EXPECT_NE(result.out.find(" s a pass) and training ("), std::string::npos) << result.out;
  EXPECT_NE(result.out.find(" s a pass); --seconds "), std::string::npos) << result.out;
}

TEST_F(BenchCommand, ShowsOnATerminalWhatRuns) {
  for (const Names& args : {Names{"identity", "--lengths", "8"}, Names{"machine"},
                            Names{"decode", "--layers", "identity", "--sessions", "1"}}) {
    Names all = args;
    all.insert(all.begin(), "bench"), all.insert(all.end(), {"--seconds", "0.01", "-t", "1"});
    const ProgramResult result = run_program(all, folder.path(), {.terminal = true});
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_NE(result.err.find("] "), std::string::npos) << args[0] << ": " << result.err;
    EXPECT_TRUE(result.err.ends_with("\033[K")) << args[0] << ": " << result.err;
  }
}

TEST_F(BenchCommand, TellsWhichKernelsRan) {
  const auto ran = [&](const char* choice) {
    const ProgramResult result = small({"ttt_linear", "--lengths", "8", "--kernels", choice, "--json"});
    return result.code == 0 ? Json::parse(result.out)[0]["kernels"].get<std::string>() : result.err;
  };
  EXPECT_TRUE(ran("auto").starts_with("ttt_linear fused on ")) << ran("auto");
  EXPECT_EQ(ran("fused"), ran("auto"));
  EXPECT_TRUE(ran("reference").starts_with("ttt_linear reference")) << ran("reference");
  EXPECT_EQ(ran("reference").find("fused"), std::string::npos) << ran("reference");
  EXPECT_TRUE(refused(small({"ttt_linear(form=primal)", "--kernels", "fused", "--json"}), {"no fused kernel"}));
  EXPECT_TRUE(refused(small({"ttt_linear", "--kernels", "fusd"}), {"unknown choice 'fusd'", "did you mean 'fused'"}));
  const ProgramResult plain = small({"ttt_linear", "--lengths", "8"});
  EXPECT_NE(plain.out.find("\nttt_linear: ttt_linear fused on "), std::string::npos) << plain.out;
}

TEST_F(BenchCommand, MeasuresOperationsBesideTheMachine) {
  Names args = {"op", "linear_attention", "delta_rule", "--heads",   "3",   "--head-size", "8", "--length",
                "40", "--batch-size",     "2",          "--seconds", "0.01"};
  const ProgramResult plain = bench(args);
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(plain.out.find("B 2 H 3 K 8 T 40, float32;"), 0u) << plain.out;
  EXPECT_NE(plain.out.find("\n1 thread, instructions "), std::string::npos) << plain.out;
  EXPECT_NE(plain.out.find("\nkernels: linear_attention fused on "), std::string::npos) << plain.out;
  args.push_back("--json");
  const Json result = Json::parse(bench(args).out);
  const Json& rows = result["operations"];
  ASSERT_EQ(rows.size(), 6u);
  const auto value = [](const Json& row, const char* key) { return row[key].get<double>(); };
  // The recurrences' products, k v^T and S^T q of 3 heads, and for the delta rule S^T k; a step reads and writes S.
  const double products[] = {2, 6, 2, 3, 9, 3}, numbers[] = {32, 88, 32 + 2 * 64, 33, 91, 33 + 2 * 64};
  const Names names = {"linear_attention", "linear_attention both", "linear_attention step",
                       "delta_rule",       "delta_rule both",       "delta_rule step"};
  for (size_t i = 0; i < names.size(); ++i) {
    const Json& row = rows[i];
    EXPECT_EQ(row["operation"], names[i]);
    EXPECT_GT(value(row, "us_per_token_least"), 0);
    EXPECT_LE(value(row, "us_per_token_least"), value(row, "us_per_token"));
    EXPECT_LE(value(row, "us_per_token"), value(row, "us_per_token_most"));
    EXPECT_NEAR(value(row, "gflops") * value(row, "us_per_token") * 1e3, products[i] * 3 * 2 * 8 * 8, 1e-6);
    EXPECT_NEAR(value(row, "gbytes") * value(row, "us_per_token") * 1e3, numbers[i] * 3 * 4, 1e-6);
    EXPECT_NEAR(value(row, "of_tiles") * value(result["machine"], "tiles_gflops"), value(row, "gflops"), 1e-9);
    EXPECT_NEAR(value(row, "of_copy") * value(result["machine"], "copy_gbytes"), value(row, "gbytes"), 1e-9);
  }
  const Json machine = Json::parse(bench({"machine", "--seconds", "0.01", "--json"}).out);
  EXPECT_EQ(machine["instructions"], result["machine"]["instructions"]);
  for (const char* key : {"sgemm_gflops", "bf16_gemm_gflops", "tiles_gflops", "copy_gbytes"}) {
    EXPECT_GT(value(machine, key), 0) << key;
  }
}

TEST_F(BenchCommand, MeasuresEveryOperationInBothTypes) {
  Names args = {"op",         "--heads",           "2",     "--head-size",  "4",         "--length",
                "20",         "--mini-batch-size", "5",     "--vocab-size", "30",        "--sessions",
                "3",          "--seconds",         "0.001", "--json",       "--kernels", "fused",
                "--precision"};
  for (const bool narrow : {false, true}) {
    args.push_back(narrow ? "bfloat16" : "float32");
    const ProgramResult ran = bench(args);
    ASSERT_EQ(ran.code, 0) << ran.err;
    const Json result = Json::parse(ran.out);
    EXPECT_EQ(result["sizes"]["mini_batch_size"], 5);
    std::map<std::string, Json> rows;
    for (const Json& row : result["operations"]) rows[row["operation"].get<std::string>()] = row;
    EXPECT_EQ(rows.size(), narrow ? 28u : 39u) << result["operations"];
    for (const char* name : {"feature_attention", "nearest_code", "vq_attention", "wkv"}) {
      EXPECT_EQ(rows.contains(name), !narrow) << name;
    }
    const auto per_token = [&](const char* name, const char* key) {
      return rows.at(name)[key].get<double>() * rows.at(name)["us_per_token"].get<double>() * 1e3;
    };
    const double size = narrow ? 2 : 4;
    // Inputs and outputs of 8 channels; C is in the triangles of q k^T and its product.
    EXPECT_NEAR(per_token("swiglu", "gbytes"), 3 * 8 * size, 1e-9);
    EXPECT_NEAR(per_token("swiglu both", "gbytes"), (3 * 2 + 2) * 8 * size, 1e-9);
    EXPECT_NEAR(per_token("rope both", "gbytes"), 4 * 8 * size, 1e-9);
    EXPECT_NEAR(per_token("add_rms_norm", "gbytes"), 8 * (2 * size + 2 * 4), 1e-9);
    EXPECT_NEAR(per_token("add_rms_norm both", "gbytes"), 8 * (narrow ? 4 * 2 + 4 * 4 : 7 * 4), 1e-9);
    EXPECT_NEAR(per_token("selective_scan", "gflops"), 8 * 8 * 16, 1e-9);
    EXPECT_NEAR(per_token("token_loss", "gflops"), 2 * 30 * 8, 1e-9);
    EXPECT_NEAR(per_token("ttt_linear", "gflops"), 2 * (6 * 16 + 2 * 6 * 4), 1e-9);
    EXPECT_NEAR(per_token("ttt_linear", "gbytes"), 2 * (4 * 4 * size + 4), 1e-9);
    EXPECT_NEAR(per_token("short_conv step", "gbytes"), 8 * (2 * size + 6 * 4), 1e-9);
    args.pop_back();
  }
  EXPECT_TRUE(refused(bench({"op", "wkv", "--precision", "bfloat16"}), {"bench op: wkv: float32 only"}));
  EXPECT_TRUE(refused(bench({"op", "rope", "--head-size", "5"}), {"bench op: rope: an even --head-size only"}));
  const ProgramResult plain = bench({"op", "--head-size", "5", "--heads", "2", "--length", "6", "--seconds", "0.001"});
  EXPECT_NE(plain.out.find("\nleft out: rope (an even --head-size only)\n"), std::string::npos) << plain.out;
}

TEST_F(BenchCommand, CountsWhatQuantisedAttentionMeets) {
  constexpr int64_t kLength = 700, kBlock = 128, kWindow = 200, kCodes = 30, kHeadSize = 4;
  const ProgramResult ran =
      bench({"op", "vq_attention", "feature_attention", "--heads", "1", "--head-size", "4", "--length", "700",
             "--window", "200", "--codes", "30", "--seconds", "0.001", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  std::map<std::string, double> flops;  // of all tokens
  const Json result = Json::parse(ran.out);
  for (const Json& row : result["operations"]) {
    flops[row["operation"].get<std::string>()] =
        row["gflops"].get<double>() * row["us_per_token"].get<double>() * 1e3 * kLength;
  }
  int64_t keys = 0, distances = 0, codes = 0;
  for (int64_t t = 0; t < kLength; ++t) {
    bool is_far = false;
    for (int64_t s = 0; s <= t; ++s) {
      const bool is_near = s >= t - t % kBlock - kWindow;
      keys += is_near;
      distances += t - s <= kWindow;
      is_far = is_far || !is_near;
    }
    codes += is_far ? kCodes : 0;
  }
  const auto search = kLength * kCodes;
  EXPECT_NEAR(flops["vq_attention"], 2.0 * kHeadSize * (search + 2 * keys + distances + 2 * codes), 1e-3);
  EXPECT_NEAR(flops["vq_attention both"], 2.0 * kHeadSize * (search + 6 * keys + 3 * distances + 5 * codes), 1e-3);
  EXPECT_NEAR(flops["feature_attention both"] / flops["feature_attention"], 20.0 / 8, 1e-9);
}

TEST_F(BenchCommand, OperationsThatCannotFitAreRefusedAtOnce) {
  EXPECT_TRUE(refused(bench({"op", "swiglu", "--length", "16777216", "--batch-size", "16777216"}),
                      {"bench op: these sizes need more than ", " MiB are free; ", "--batch-size"}));
  const ProgramResult result = run_program({"bench", "op", "swiglu", "--length", "200000", "-t", "1"}, folder.path(),
                                           {.most_memory = start_memory() + (int64_t{1} << 28)});
  EXPECT_TRUE(refused(result, {"bench op: out of memory, allocating ", "needs less: a shorter --length"}));
}

TEST_F(BenchCommand, OperationsRunOnTheirReferencesWhenAsked) {
  const ProgramResult result = bench({"op", "--kernels", "reference", "--heads", "2", "--head-size", "4", "--length",
                                      "20", "--seconds", "0.001", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json found = Json::parse(result.out);
  EXPECT_EQ(found["kernels"].get<std::string>().find("fused"), std::string::npos) << found["kernels"];
  const std::string ran = found["kernels"].get<std::string>();
  for (const char* name : {"ttt_linear", "wkv", "short_conv", "rope", "rms_norm", "swiglu", "token_loss"}) {
    EXPECT_NE(ran.find(name + std::string(" reference")), std::string::npos) << name << ": " << ran;
  }
}

TEST_F(BenchCommand, InstructionSetsHaveTheNamesEveryoneUses) {
  const Names cell = {"ttt_linear", "--lengths", "8", "--json"};
  ::setenv("LINEAL_CPU", "avx51", 1);
#ifdef __x86_64__
  EXPECT_TRUE(refused(small(cell), {"LINEAL_CPU: unknown instruction set 'avx51'", "did you mean 'avx512'?", "sse4"}));
  for (const char* name : {"avx512", "AVX-512"}) {
    ::setenv("LINEAL_CPU", name, 1);
    EXPECT_EQ(small(cell).code, 0) << name;
  }
#else
  EXPECT_TRUE(refused(small(cell), {"LINEAL_CPU: unknown instruction set 'avx51'"}));
#endif
  ::unsetenv("LINEAL_CPU");
  const ProgramResult result = small(cell);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out.find("AVX3"), std::string::npos) << result.out;
}

TEST_F(BenchCommand, MistakesEndInOneLine) {
  EXPECT_TRUE(refused(bench({"op", "delta_ruel"}), {"bench op: unknown operation", "did you mean 'delta_rule'"}));
  EXPECT_TRUE(refused(bench({"op", "--head-sise", "3"}), {"bench op: ", "did you mean '--head-size'"}));
  EXPECT_TRUE(refused(bench({"machine", "5"}), {"bench machine: unexpected argument '5'"}));
  EXPECT_TRUE(refused(bench({"attention", "--hidden-size", "30"}),
                      {"attention: num_attention_heads is 4", "divisor of hidden_size 30"}));
  EXPECT_TRUE(refused(bench({"op", "--head-size", "abc"}), {"bench op: --head-size is abc, expected 1 to 16777216"}));
  for (const char* part : {"op", "machine", "decode"}) {
    EXPECT_TRUE(refused(bench({part, "--seconds", "nan"}), {"--seconds is nan, expected 0.001 to 3600"})) << part;
  }
  EXPECT_TRUE(refused(bench({"decode", "--layers", "linformer"}), {"bench decode: mixer linformer looks ahead"}));
  EXPECT_TRUE(refused(bench({"ops"}), {"bench: unknown mixer or part 'ops'", "did you mean 'op'"}));
  EXPECT_TRUE(refused(bench({"atention"}), {"unknown mixer 'atention'", "did you mean 'attention'"}));
  EXPECT_TRUE(refused(bench({"attention", "--batch", "3"}), {"unknown flag '--batch'"}));
  EXPECT_TRUE(refused(bench({"model", "--layers", "attention", "--hidden-size", "30"}),
                      {"bench model: attention: num_attention_heads is 4", "divisor of hidden_size 30"}));
  EXPECT_TRUE(refused(bench({"model", "--batch-sise", "3"}), {"did you mean '--batch-size'"}));
}

TEST_F(BenchCommand, MemoryThatIsNotThereIsANote) {
  const ProgramResult result = bench({"identity", "--hidden-size", "1024", "--lengths", "16777216", "--batch-size",
                                      "4096", "--seconds", "0.01", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json row = Json::parse(result.out)[0];
  EXPECT_NE(row["note"].get<std::string>().find("MiB free"), std::string::npos) << row.dump();
  EXPECT_FALSE(row.contains("train_tokens_per_s"));
}

TEST_F(BenchCommand, MeasuresAModelsStep) {
  Names args = {"model", "--layers",  "identity*2", "--hidden-size", "12", "--intermediate-size", "0", "--batch-size",
                "3",     "--context", "17",         "--steps",       "4"};
  const ProgramResult plain = bench(args);
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_NE(plain.out.find("batch 3 x context 17, 1 thread, float32"), std::string::npos) << plain.out;
  EXPECT_NE(plain.out.find("forward alone: "), std::string::npos) << plain.out;
  args.push_back("--json");
  const Json result = Json::parse(bench(args).out);
  EXPECT_EQ(result["tokens"], 3 * 17);
  EXPECT_EQ(result["seconds"].size(), 4u);
  EXPECT_EQ(result["sizes"]["context"], 17);
  ASSERT_EQ(result["seconds_forward"].size(), 4u);
  for (const Json& seconds : result["seconds_forward"]) EXPECT_GT(seconds.get<double>(), 0);
  EXPECT_EQ(result["parameters"], 256 * 12 + 2 * (2 * 12 * 12 + 12) + 12);
  EXPECT_GT(result["peak_bytes"].get<double>(), 0);
}

TEST_F(BenchCommand, MeasuresRandomFeatures) {
  Names args = {"approximation", "--length", "40", "--head-size",  "8",        "--samples", "3", "--num-features",
                "5,6",           "--draws",  "2",  "--projection", "iid,g-orf"};
  const ProgramResult plain = bench(args);
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(std::count(plain.out.begin(), plain.out.end(), '\n'), 2 + 2 * 3 * 2) << plain.out;
  args.push_back("--json");
  const Json rows = Json::parse(bench(args).out);
  ASSERT_EQ(rows.size(), 2u * 3 * 2);
  EXPECT_EQ(rows[1]["projection"], "g-orf");
  EXPECT_EQ(rows[2]["feature_map"], "hyperbolic");
  EXPECT_EQ(rows[11]["num_features"], 6);
  for (const Json& row : rows) {
    for (const char* key : {"relative_error", "squared_error", "squared_error_deviation"})
      EXPECT_GT(row[key], 0) << row;
    EXPECT_EQ(row["not_finite"], 0);
  }
  EXPECT_EQ(plain.out.find("not finite"), std::string::npos) << plain.out;
  args.insert(args.end(), {"--deviation", "1000", "--feature-map", "positive"});
  for (const Json& row : Json::parse(bench(args).out)) {
    EXPECT_EQ(row["not_finite"], 3);
    EXPECT_TRUE(row["squared_error"].is_null());
  }
  args.erase(std::find(args.begin(), args.end(), "--json"));
  const ProgramResult infinite = bench(args);
  EXPECT_NE(infinite.out.find("-  samples not finite: 3\n"), std::string::npos) << infinite.out;
  EXPECT_TRUE(refused(bench({"approximation", "--feature-map", "relu"}), {"feature map", "relu", "positive"}));
  EXPECT_TRUE(refused(bench({"approximation", "--projection", "g-orff"}), {"did you mean 'g-orf'"}));
}

TEST_F(BenchCommand, MeasuresAConvertedModelsBlocks) {
  const auto path = [&](const char* name) { return (folder / name).string(); };
  write_atomic(folder / "text", std::string(300, 'a') + std::string(200, 'b'));
  const auto lineal = [&](const Names& args) { return run_program(args, folder.path()); };
  ASSERT_EQ(lineal({"train", path("text"), "-o", path("run"), "--layers", "attention*3", "--hidden-size", "16", "-c",
                    "8", "--batch-size", "1", "--steps", "1", "-t", "1"})
                .code,
            0);
  ASSERT_EQ(lineal({"convert", "-m", path("run"), "--layers", "attention, performer*2", "-o", path("new")}).code, 0);
  Names args = {"propagation", path("text"), "-m", path("run"), "--other", path("new"), "-c", "400"};
  const ProgramResult plain = bench(args);
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(std::count(plain.out.begin(), plain.out.end(), '\n'), 4) << plain.out;
  args.push_back("--json");
  const Json rows = Json::parse(bench(args).out);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0]["propagated"], 0);
  EXPECT_EQ(rows[1]["propagated"], rows[1]["alone"]);
  EXPECT_GT(rows[1]["alone"], 0);
  EXPECT_GT(rows[2]["propagated"], rows[2]["alone"]);
  EXPECT_TRUE(refused(bench({"propagation", path("text"), "-m", path("run"), "--other", path("new"), "-c", "501"}),
                      {"bench propagation: the text has 500 tokens", "--context 501"}));
}

TEST_F(BenchCommand, MeasuresDecodingManySessions) {
  Names args = {"decode",        "--layers",  "delta_net(num_attention_heads=3)*2",
                "--hidden-size", "24",        "--sessions",
                "1,5",           "--seconds", "0.05",
                "--read",        "7"};
  const ProgramResult plain = bench(args);
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_NE(plain.out.find("delta_net(num_attention_heads=3)*2, width 24, 1 thread, "), std::string::npos) << plain.out;
  args.push_back("--json");
  const Json result = Json::parse(bench(args).out);
  EXPECT_NE(result["kernels"].get<std::string>().find("delta_rule fused on "), std::string::npos) << result["kernels"];
  ASSERT_EQ(result["rows"].size(), 2u);
  for (const Json& row : result["rows"]) {
    const auto value = [&](const char* key) { return row[key].get<double>(); };
    const double sessions = value("sessions"), second = 1e6 / value("us_per_step");  // in steps
    // Two layers of S, three windows of three tokens, and a position, all of which a step reads and writes.
    EXPECT_EQ(value("state_bytes"), sessions * 2 * (4 * (3 * 8 * 8 + 3 * 3 * 24) + 8));
    EXPECT_GT(value("context"), 7 + 6);
    EXPECT_NEAR(value("state_gbytes") * 1e9, 2 * value("state_bytes") * second, 1e-6 * value("state_gbytes") * 1e9);
    EXPECT_NEAR(value("of_copy") * result["copy_gbytes"].get<double>(), value("state_gbytes"), 1e-9);
    EXPECT_NEAR(value("tokens_per_s"), sessions * second, 1e-6 * sessions * second);
    for (const char* key : {"in_products", "in_kernels", "outside"}) EXPECT_GT(value(key), 0) << key;
    EXPECT_NEAR(value("in_products") + value("in_kernels") + value("outside"), 1, 1e-9);
  }
  EXPECT_EQ(result["sizes"]["read"], 7);
  EXPECT_EQ(result["threads"], 1);
  EXPECT_TRUE(refused(bench({"decode", "--session", "3"}), {"bench decode: ", "did you mean '--sessions'"}));
}

}  // namespace
}  // namespace lineal
