// lineal eval as a user runs it: results, every kind of bad input, memory.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backbones/model_files.h"
#include "core/safetensors.h"
#include "testing/program.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using Names = std::vector<std::string>;

void write_model(const std::filesystem::path& dir, const std::string& plan, int64_t D = 16) {
  LanguageModelConfig config;
  config.hidden_size = D;
  config.intermediate_size = 0;
  config.initializer_range = 0.3;
  config.layers = parse_plan(plan);
  save_model(LanguageModel(config), dir);
}

std::string some_text(size_t size) {
  std::string bytes;
  for (uint64_t i = 0, x = 1; bytes.size() < size; ++i) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    bytes += (x >> 60) == 0 ? '\n' : static_cast<char>('a' + (x >> 40) % 23);
  }
  return bytes;
}

class EvalCommand : public testing::Test {
 protected:
  void SetUp() override { write_model(folder / "model", "ttt_linear(num_attention_heads=2,mini_batch_size=7)"); }
  std::string path(const std::string& name) const { return (folder / name).string(); }
  ProgramResult eval(Names args, const std::string& input = "") const {
    args.insert(args.begin(), {"eval", "-m", path("model"), "-t", "1"});
    return run_program(args, folder.path(), {input});
  }
  TemporaryFolder folder;
};

TEST_F(EvalCommand, TheChunkChangesNothing) {
  const std::string bytes = some_text(3001);
  write_atomic(folder / "a.txt", bytes);
  write_atomic(folder / "b.jsonl", "{\"text\": \"one line\"}\n{\"text\": \"and another\"}\n");
  const auto measured = [&](const std::string& chunk) {
    const ProgramResult run = eval({path("a.txt"), path("b.jsonl"), "--chunk", chunk, "--json"});
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.err, "");
    return Json::parse(run.out);
  };
  const Json expected = measured("2048");
  EXPECT_EQ(expected["documents"], 3);
  EXPECT_EQ(expected["tokens"], 3001 + 8 + 11);
  EXPECT_EQ(expected["predicted_tokens"], 3001 + 8 + 11 - 3);
  EXPECT_EQ(expected["positions"].size(), 5u);
  const double nats = expected["nats_per_token"];
  EXPECT_NEAR(expected["bits_per_byte"].get<double>(), nats / std::log(2.), 1e-9);
  EXPECT_NEAR(expected["perplexity"].get<double>(), std::exp(nats), 1e-6 * std::exp(nats));
  for (const std::string chunk : {"7", "64", "1000"}) {
    const Json other = measured(chunk);
    for (const char* name : {"nats_per_token", "nats_per_token_error", "bits_per_byte", "perplexity"}) {
      const double value = expected[name];
      EXPECT_NEAR(other[name].get<double>(), value, 1e-4 * value) << name << ", chunk " << chunk;
    }
  }
  const ProgramResult lines = eval({"-"}, bytes);
  EXPECT_EQ(lines.code, 0) << lines.err;
  EXPECT_NE(lines.out.find("3001, 3000 of them predicted"), std::string::npos) << lines.out;
}

TEST_F(EvalCommand, LogitsOfTokens) {
  const auto model = load_native_model(folder / "model");
  const Tensor ids = at::randint(256, {3, 29}, at::kLong);
  save_safetensors(folder / "in", {{"input_ids", ids}});
  EXPECT_EQ(eval({"--tokens", path("in"), "--logits", path("out"), "--chunk", "11"}).code, 0);
  at::NoGradGuard no_grad;
  State state = model->initial_state(3);
  EXPECT_CLOSE(load_safetensors(folder / "out").at("logits", "test"), model->forward(ids, state), 1e-5);
  EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", "/dev/full"}), {"/dev/full", "No space left"}));
  EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", "/proc/out"}), {"/proc/out"}));
  EXPECT_TRUE(refused(eval({"--tokens", path("in")}), {"--logits"}));
  std::filesystem::remove(folder / "out");
  save_safetensors(folder / "in", {{"input_ids", ids + 200}});
  EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", path("out")}), {"input_ids holds", "0 to 255"}));
  save_safetensors(folder / "in", {{"input_ids", ids.to(at::kFloat)}});
  EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", path("out")}), {"Float", "I64"}));
  const std::string bytes = read_file(folder / "in");
  write_atomic(folder / "in", std::string_view(bytes).substr(0, bytes.size() - 5));
  EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", path("out")}), {path("in")}));
  EXPECT_EQ(folder.names(), Names({"in", "model"}));
}

TEST_F(EvalCommand, LogitsAreNotWrittenOverWhatIsRead) {
  save_safetensors(folder / "in", {{"input_ids", at::zeros({1, 3}, at::kLong)}});
  const std::string ids = read_file(folder / "in"), weights = read_file(folder / "model/model.safetensors");
  std::filesystem::create_hard_link(folder / "in", folder / "same");
  std::filesystem::create_directory(folder / "kept");
  std::filesystem::create_hard_link(folder / "model/model.safetensors", folder / "kept/weights");
  for (const char* out : {"in", "same"}) {
    EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", path(out)}),
                        {"eval: --logits " + path(out), "is the file that is read"}));
  }
  for (const char* out : {"model/model.safetensors", "kept/weights"}) {
    EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", path(out)}),
                        {"eval: --logits " + path(out), "in the folder of the model"}));
  }
  EXPECT_TRUE(read_file(folder / "in") == ids);
  EXPECT_TRUE(read_file(folder / "model/model.safetensors") == weights);
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(eval({"--tokens", path("in"), "--logits", path("model/new")}).code, again == 0 ? 0 : 2);
    EXPECT_EQ(eval({"--tokens", path("in"), "--logits", path("out")}).code, 0);
  }
}

TEST_F(EvalCommand, RefusesBadText) {
  write_atomic(folder / "empty", "");
  write_atomic(folder / "one", "x");
  write_atomic(folder / "bad.gz", "\x1f\x8b\x08 broken");
  write_atomic(folder / "bad.jsonl", "{\"text\": \"good\"}\n{\"text\": 3}\n");
  std::filesystem::create_directory(folder / "folder");
  EXPECT_TRUE(refused(eval({}), {"no text"}));
  EXPECT_TRUE(refused(eval({path("missing")}), {path("missing")}));
  EXPECT_TRUE(refused(eval({path("empty")}), {path("empty")}));
  EXPECT_TRUE(refused(eval({path("folder")}), {path("folder")}));
  EXPECT_TRUE(refused(eval({path("bad.gz")}), {path("bad.gz")}));
  EXPECT_TRUE(refused(eval({path("bad.jsonl")}), {path("bad.jsonl"), "2"}));
  EXPECT_TRUE(refused(eval({path("one")}), {"nothing to predict"}));
  write_atomic(folder / "two", "xy");
  EXPECT_TRUE(refused(run_program({"eval", "-m", path("model"), path("two")}, folder.path(), {"", "/dev/full"}),
                      {"standard output"}));
  EXPECT_TRUE(refused(eval({path("one"), "--chunks", "5"}), {"--chunks", "did you mean '--chunk'"}));
  EXPECT_TRUE(refused(eval({path("one"), "--chunk", "0"}), {"--chunk"}));
  EXPECT_TRUE(refused(eval({path("one"), "--limit", "many"}), {"--limit"}));
}

TEST_F(EvalCommand, RefusesBadModels) {
  write_atomic(folder / "text", "some text");
  const auto refuses = [&](const Names& parts) { return refused(eval({path("text")}), parts); };
  const std::string config = read_file(folder / "model/config.json");
  const std::string weights = read_file(folder / "model/model.safetensors");
  write_atomic(folder / "model/model.safetensors", std::string_view(weights).substr(0, weights.size() / 2));
  EXPECT_TRUE(refuses({"model.safetensors"}));
  std::filesystem::remove(folder / "model/model.safetensors");
  EXPECT_TRUE(refuses({"model.safetensors", "No such file"}));
  write_atomic(folder / "model/config.json", std::string_view(config).substr(0, config.size() / 2));
  EXPECT_TRUE(refuses({"config.json", "no valid JSON"}));
  write_atomic(folder / "model/config.json", "{\"model_type\": \"lineall\"}");
  EXPECT_TRUE(refuses({"model_type", "'lineal'"}));
  std::filesystem::remove_all(folder / "model");
  EXPECT_TRUE(refuses({path("model"), "does not exist"}));
}

TEST_F(EvalCommand, ModelsThatAreNotFiniteAreRefused) {
  const auto file = folder / "model/model.safetensors";
  auto parameters = load_safetensors(file);
  for (auto& [name, tensor] : parameters.tensors) {
    tensor = tensor.clone();  // of the file that is written over
    if (name == "model.norm.weight") tensor.fill_(std::nan(""));
  }
  save_safetensors(file, parameters.tensors, parameters.metadata);
  write_atomic(folder / "text", "some text");
  save_safetensors(folder / "in", {{"input_ids", at::zeros({1, 3}, at::kLong)}});
  EXPECT_TRUE(
      refused(eval({path("text")}), {"eval: the loss of the token at position 1 of its document is not finite"}));
  EXPECT_TRUE(refused(eval({path("text"), "--json"}), {"is not finite"}));
  EXPECT_TRUE(refused(eval({"--tokens", path("in"), "--logits", path("out")}), {"eval: logits", "not finite"}));
  EXPECT_TRUE(refused(run_program({"read", "-m", path("model"), path("text"), "-o", path("a.state")}, folder.path()),
                      {"after 9 tokens holds nan"}));
  EXPECT_EQ(folder.names(), Names({"in", "model", "text"}));
}

TEST_F(EvalCommand, TokensAndMeasuresDoNotMix) {
  save_safetensors(folder / "in", {{"input_ids", at::zeros({1, 3}, at::kLong)}});
  const auto with = [&](const Names& more) {
    Names args = {"--tokens", path("in"), "--logits", path("out")};
    args.insert(args.end(), more.begin(), more.end());
    return eval(args);
  };
  EXPECT_TRUE(refused(with({"--json"}), {"--tokens does not go with --json;"}));
  EXPECT_TRUE(refused(with({"--buckets", "9", "--limit", "5", "--max-context", "3"}),
                      {"--tokens does not go with --limit, --max-context, --buckets;"}));
  EXPECT_TRUE(refused(with({"--text-field", "body"}), {"--tokens does not go with --text-field;"}));
  EXPECT_EQ(folder.names(), Names({"in", "model"}));
}

TEST_F(EvalCommand, MaxContextIsTheBucketsEnd) {
  write_atomic(folder / "text", some_text(1001));
  const ProgramResult run = eval({path("text"), "--max-context", "50", "--buckets", "16", "--json"});
  const Json result = Json::parse(run.out);
  Json ends = Json::array();
  for (const Json& bucket : result["positions"]) ends.push_back(bucket["end"]);
  EXPECT_EQ(ends, Json({16, 32, 64}));
  EXPECT_NE(eval({path("text")}).out.find("position in document"), std::string::npos);
  EXPECT_NE(eval({path("text"), "--max-context", "50"}).out.find("position since restart"), std::string::npos);
}

TEST_F(EvalCommand, ModelsWithoutATokenizerAreEvaluatedFromIds) {
  LanguageModelConfig config;
  config.vocab_size = 300;
  config.hidden_size = 16;
  config.tokenizer = "";
  config.layers = parse_plan("identity");
  save_model(LanguageModel(config), folder / "model");
  write_atomic(folder / "text", "some text");
  EXPECT_TRUE(refused(eval({path("text")}), {"eval: this model has 300 tokens", "--tokens and --logits"}));
}

TEST_F(EvalCommand, PositionsAreMeasuredInOneTable) {
  write_model(folder / "attention", "attention(num_attention_heads=2)*2");
  write_atomic(folder / "text", some_text(601));
  const auto run = [&](Names args) {
    args.insert(args.begin(), {"eval", "-t", "1", path("text")});
    return run_program(args, folder.path());
  };
  const Names attention = {"-m", path("attention"), "--original-length", "50", "--factor", "4"};
  const auto with = [&](const Names& more) {
    Names args = attention;
    args.insert(args.end(), more.begin(), more.end());
    return run(args);
  };
  const auto alone = [&](const std::string& position) {
    const auto result = with({"--position", position, "--buckets", "50", "--max-context", "199", "--json"});
    EXPECT_EQ(result.code, 0) << result.err;
    return Json::parse(result.out);
  };
  const auto table =
      with({"--position", "rope,yarn,rerope+log_n", "-m", path("model"), "--json", "--csv", path("csv")});
  EXPECT_EQ(table.code, 0) << table.err;
  const Json rows = Json::parse(table.out);
  ASSERT_EQ(rows.size(), 4u);
  std::string csv = "model,position,begin,end,tokens,nats_per_token\n";
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json& row = rows[i];
    EXPECT_EQ(row["position"], (Names{"rope", "yarn", "rerope+log_n", ""})[i]);
    EXPECT_EQ(row["model"], path(i < 3 ? "attention" : "model"));
    ASSERT_EQ(row["positions"].size(), 3u);  // 0-49, 50-99, 100-199, and no further
    if (i < 3) {
      EXPECT_EQ(row["positions"], alone(row["position"])["positions"]);
    }
    for (const Json& bucket : row["positions"]) {
      char value[32];
      std::snprintf(value, sizeof value, "%.6f", bucket["nats_per_token"].get<double>());
      csv += text("\"", row["model"].get<std::string>(), "\",", row["position"].get<std::string>(), ",",
                  bucket["begin"], ",", bucket["end"], ",", bucket["tokens"], ",", value, "\n");
    }
  }
  EXPECT_EQ(read_file(folder / "csv"), csv);
  EXPECT_NE(rows[0]["positions"], rows[1]["positions"]);
  const auto printed = with({"--position", "rope,yarn"});
  for (const char* part : {"nats per token at", "0-49 ", "100-199 ", "attention yarn "}) {
    EXPECT_NE(printed.out.find(part), std::string::npos) << part << " in " << printed.out;
  }
  const auto all = with({"--position", "all", "--json"});
  EXPECT_EQ(all.code, 0) << all.err;
  EXPECT_EQ(Json::parse(all.out).size(), 16u);
  EXPECT_EQ(all.err, "");

  write_model(folder / "alibi", "attention(num_attention_heads=2,position=alibi)*2");
  const Names alibi = {"-m", path("alibi"), "--original-length", "50", "--factor", "4", "--json", "--position"};
  const auto of_alibi = [&](const std::string& position) {
    Names args = alibi;
    args.push_back(position);
    return run(args);
  };
  const auto fitting = of_alibi("all");
  EXPECT_EQ(fitting.code, 0) << fitting.err;
  const std::string why = "position sink: language_model: attention: sink_tokens is 4, expected 0 with position alibi";
  EXPECT_EQ(fitting.err.find("left out of " + path("alibi") + ": " + why), 0u) << fitting.err;
  EXPECT_EQ(std::count(fitting.err.begin(), fitting.err.end(), '\n'), 1) << fitting.err;
  EXPECT_EQ(Json::parse(fitting.out).size(), 15u);
  EXPECT_TRUE(refused(of_alibi("log_n,sink"), {why}));
  EXPECT_TRUE(refused(of_alibi("sink"), {why}));
  EXPECT_TRUE(refused(with({"--position", "yarm"}), {"unknown position 'yarm'; did you mean 'yarn'"}));
  EXPECT_TRUE(refused(with({"--position", "rope,yarm", "--csv", path("new")}), {"unknown position 'yarm'"}));
  EXPECT_TRUE(refused(run({"-m", path("model"), "--position", "yarn"}), {"the model has no attention layer"}));
  EXPECT_TRUE(refused(run({"-m", path("model"), "--position", "rope,yarn"}), {"no model here has any"}));
  EXPECT_TRUE(refused(run({"-m", path("attention"), "--position", "yarn"}), {"original_length is 0"}));
  EXPECT_TRUE(refused(run({"-m", path("attention"), "--position", "rope,linear"}), {"expected --original-length"}));
  EXPECT_TRUE(refused(with({"--position", "rope,yarn", "--csv", path("text")}), {"--csv", "is the file that is read"}));
  EXPECT_EQ(folder.names(), Names({"alibi", "attention", "csv", "model", "text"}));
}

TEST_F(EvalCommand, Tasks) {
  write_atomic(folder / "choices.jsonl",
               "{\"query\": \"The sky is\", \"choices\": [\"blue\", \"a fish\"], \"gold\": 0}\n"
               "{\"query\": \"Water is\", \"choices\": [\"dry\", \"wet\"], \"gold\": 1}\n");
  const ProgramResult run = eval({"--task", path("choices.jsonl"), "--task", "recall", "--length", "40,200",
                                  "--samples", "1", "--max-answer", "3", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const Json tasks = Json::parse(run.out)[0]["tasks"];
  ASSERT_EQ(tasks.size(), 12u);  // the file, two lengths at five depths, all
  EXPECT_EQ(tasks[0]["group"], "choices.jsonl");
  EXPECT_EQ(tasks[0]["accuracy"]["questions"], 2);
  EXPECT_EQ(tasks[1]["group"], "recall 40 at 0.00");
  EXPECT_EQ(tasks[11]["exact_match"]["questions"], 10);
  EXPECT_EQ(tasks[11]["exact_match"]["value"], 0);
  std::filesystem::create_directory(folder / "other");
  std::filesystem::copy(folder / "choices.jsonl", folder / "other");
  const ProgramResult two = eval({"--task", path("choices.jsonl"), "--task", path("other/choices.jsonl"), "--json"});
  ASSERT_EQ(two.code, 0) << two.err;
  const Json apart = Json::parse(two.out)[0]["tasks"];
  ASSERT_EQ(apart.size(), 3u);
  EXPECT_EQ(apart[1]["group"], path("other/choices.jsonl"));
  EXPECT_EQ(apart[1]["accuracy"]["questions"], 2);
  const ProgramResult table = eval({"--task", path("choices.jsonl")});
  EXPECT_NE(table.out.find("choices.jsonl  2          "), std::string::npos) << table.out;

  write_atomic(folder / "hay.txt", some_text(500));
  ASSERT_EQ(
      eval({"--task", "needle", path("hay.txt"), "--length", "300", "--samples", "2", "--write", path("needles.jsonl")})
          .code,
      0);
  const std::string lines = read_file(folder / "needles.jsonl");
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 10);
  const ProgramResult asked = eval({"--task", path("needles.jsonl"), "--max-answer", "2", "--json"});
  EXPECT_EQ(Json::parse(asked.out)[0]["tasks"][0]["exact_match"]["questions"], 10) << asked.err;

  EXPECT_TRUE(refused(eval({"--task", "needle"}), {"--task needle needs text to hide keys in"}));
  EXPECT_TRUE(refused(eval({"--task", "recall", path("hay.txt")}), {"--task recall reads no files"}));
  EXPECT_TRUE(refused(eval({"--task", path("choices.jsonl"), path("hay.txt")}), {"reads no other files"}));
  EXPECT_TRUE(refused(eval({"--task", path("hay.txt")}), {"hay.txt:1: no valid JSON"}));
  EXPECT_TRUE(refused(eval({"--task", "recall", "--limit", "3"}), {"--task does not go with --limit"}));
  EXPECT_TRUE(refused(eval({path("hay.txt"), "--shots", "3"}), {"--shots goes with --task"}));
  EXPECT_TRUE(refused(eval({"--task", path("choices.jsonl"), "--shots", "2"}), {"expected more than the 2 examples"}));
}

TEST_F(EvalCommand, LongNamesAreRefused) {
  const std::string name(300, 'x');
  write_atomic(folder / "text", "some text");
  EXPECT_TRUE(refused(run_program({"eval", "-m", path(name), path("text")}, folder.path()), {"File name too long"}));
  EXPECT_TRUE(refused(eval({path(name)}), {"File name too long"}));
}

TEST_F(EvalCommand, ShowsProgressOnATerminalAlone) {
  write_atomic(folder / "text", some_text(30'001));
  const Names args = {"eval", "-m", path("model"), "-t", "1", path("text"), "--chunk", "500", "--json"};
  const ProgramResult terminal = run_program(args, folder.path(), {.terminal = true});
  EXPECT_EQ(terminal.code, 0);
  for (const char* part : {"[ ", "[=", "tokens/s", " left", "30.0k tokens"}) {
    EXPECT_NE(terminal.err.find(part), std::string::npos) << part << " in " << terminal.err;
  }
  EXPECT_TRUE(terminal.err.ends_with("\r\033[K")) << "the bar is not cleared";
  EXPECT_EQ(Json::parse(terminal.out)["tokens"], 30'001);
  EXPECT_EQ(run_program(args, folder.path()).err, "");
}

TEST_F(EvalCommand, OutOfMemorySaysWhatNeedsLess) {
  write_atomic(folder / "text", some_text(1'000'000));
  const Names args = {"eval", "-m", path("model"), "-t", "1", path("text"), "--chunk", "1000000"};
  EXPECT_TRUE(refused(run_program(args, folder.path(), {.most_memory = start_memory() + (1 << 27)}),
                      {"eval: out of memory, allocating ", " bytes; needs less: a smaller --chunk or model"}));
}

TEST_F(EvalCommand, MemoryDoesNotGrowWithTheText) {
  for (const char* plan : {"ttt_linear(num_attention_heads=4,share_qk=true)", "mamba(state_size=4)"}) {
    write_model(folder / "model", plan, 8);
    const auto peak = [&](size_t size) {
      write_atomic(folder / "text", some_text(size));
      const ProgramResult run = eval({path("text"), "--json"});
      EXPECT_EQ(run.code, 0) << run.err;
      EXPECT_EQ(Json::parse(run.out)["tokens"], size);
      return run.peak_kib;
    };
    constexpr int64_t kSmall = 100'003, kLarge = 1'000'003;
    const int64_t grown = (peak(kLarge) - peak(kSmall)) << 10;
    EXPECT_LT(grown, 8 * (kLarge - kSmall)) << plan << ": a token more may not cost so much as its id";
  }
}

}  // namespace
}  // namespace lineal
