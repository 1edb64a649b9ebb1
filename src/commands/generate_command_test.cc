// lineal generate and lineal read as a user runs them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "backbones/model_files.h"
#include "core/memory.h"
#include "core/safetensors.h"
#include "testing/program.h"

namespace lineal {
namespace {

using Names = std::vector<std::string>;

class GenerateCommand : public testing::Test {
 protected:
  void SetUp() override { write_model("model"); }

  void write_model(const std::string& name) const {
    LanguageModelConfig config;
    config.hidden_size = 18;
    config.intermediate_size = 23;
    config.initializer_range = 0.3;
    config.layers = parse_plan("ttt_linear(num_attention_heads=3,mini_batch_size=7)");
    save_model(LanguageModel(config), folder / name);
  }
  std::string path(const std::string& name) const { return (folder / name).string(); }
  ProgramResult run(const std::string& command, Names args, const std::string& input = "",
                    const std::string& out = "") const {
    args.insert(args.begin(), {command, "-m", path("model"), "-t", "1"});
    return run_program(args, folder.path(), {input, out});
  }
  ProgramResult generate(const Names& args) const { return run("generate", args); }
  std::vector<Json> objects(Names args) const {
    args.push_back("--json");
    const ProgramResult result = generate(args);
    EXPECT_EQ(result.code, 0) << result.err;
    std::vector<Json> list;
    for (size_t at = 0, end; (end = result.out.find('\n', at)) != std::string::npos; at = end + 1) {
      list.push_back(Json::parse(result.out.substr(at, end - at)));
    }
    return list;
  }
  TemporaryFolder folder;
};

TEST_F(GenerateCommand, PrintsTheTextOfJson) {
  const auto list = objects({"-p", "Once upon", "-n", "21", "-s", "3"});
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0]["tokens"].size(), 21u);
  EXPECT_EQ(list[0]["finish"], "length");
  EXPECT_EQ(list[0]["read_tokens"], 9);
  const ProgramResult plain = generate({"-p", "Once upon", "-n", "21", "-s", "3"});
  EXPECT_EQ(plain.out, list[0]["text"].get<std::string>() + "\n");
  EXPECT_EQ(plain.err, "");
  EXPECT_EQ(generate({"-p", "Once upon", "-n", "21", "-s", "3", "--echo"}).out, "Once upon" + plain.out);
  EXPECT_TRUE(refused(generate({"-p", "Once", "--echo", "--json"}), {"--echo", "--json"}));
  EXPECT_TRUE(refused(generate({"-f", path("prompt"), "--echo"}), {"--echo", "--prompt"}));
  EXPECT_NE(objects({"-p", "Once upon", "-n", "21", "-s", "4"})[0]["tokens"], list[0]["tokens"]);
  write_atomic(folder / "prompt", "Once upon");
  EXPECT_EQ(objects({"-f", path("prompt"), "-n", "21", "-s", "3"})[0]["tokens"], list[0]["tokens"]);
  EXPECT_EQ(run("generate", {"-f", "-", "-n", "21", "-s", "3"}, "Once upon").out, plain.out);
}

TEST_F(GenerateCommand, ContinuationsAreThoseOfTheirSeeds) {
  const auto three = objects({"-p", "Once", "-n", "17", "-s", "5", "--count", "3", "--repeat-penalty", "1.2"});
  ASSERT_EQ(three.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const std::string seed = std::to_string(5 + i);
    EXPECT_EQ(objects({"-p", "Once", "-n", "17", "-s", seed, "--repeat-penalty", "1.2"})[0], three[i]);
  }
  EXPECT_NE(three[0]["tokens"], three[1]["tokens"]);
}

TEST_F(GenerateCommand, StopsBeforeTheStop) {
  const Json whole = objects({"-p", "Once", "-n", "200"})[0];
  std::string bytes;
  for (const Json& token : whole["tokens"]) bytes += static_cast<char>(token.get<int>());
  size_t at = 5;  // a pair of letters that comes there first
  const auto letter = [&](size_t i) { return std::isalpha(static_cast<unsigned char>(bytes[i])) != 0; };
  while (at + 2 < bytes.size() && (!letter(at) || !letter(at + 1) || bytes.find(bytes.substr(at, 2)) != at)) ++at;
  ASSERT_LT(at + 2, bytes.size());
  const std::string stop = bytes.substr(at, 2);
  const Json part = objects({"-p", "Once", "-n", "200", "--stop", "[never,this]", "--stop", stop})[0];
  EXPECT_EQ(part["finish"], "stop");
  EXPECT_EQ(part["stop"], stop);
  EXPECT_EQ(part["tokens"].size(), at + 2);
  const std::string text = whole["text"], before = part["text"];
  EXPECT_EQ(before + stop, text.substr(0, before.size() + 2));
}

TEST_F(GenerateCommand, SavedStatesGoOn) {
  const Json whole = objects({"-p", "Once upon a time", "-n", "19", "--temp", "0"})[0];
  ProgramResult read = run("read", {"-", "-o", path("a.state"), "--json"}, "Once upon a time");
  EXPECT_EQ(read.code, 0) << read.err;
  EXPECT_EQ(Json::parse(read.out)["tokens"], 16);
  const Json restored = objects({"--state", path("a.state"), "-n", "19", "--temp", "0"})[0];
  EXPECT_EQ(restored["tokens"], whole["tokens"]);
  EXPECT_EQ(restored["restored_tokens"], 16);
  EXPECT_EQ(restored["read_tokens"], 0);

  Json first = objects({"--state", path("a.state"), "-n", "8", "--temp", "0", "--save", path("b.state")})[0];
  const Json second = objects({"--state", path("b.state"), "-n", "11", "--temp", "0"})[0];
  for (const Json& token : second["tokens"]) first["tokens"].push_back(token);
  EXPECT_EQ(first["tokens"], whole["tokens"]);
  EXPECT_EQ(second["restored_tokens"], 24);

  write_atomic(folder / "more", "There was");
  read = run("read", {path("more"), "--state", path("a.state"), "-o", path("c.state"), "--json"});
  EXPECT_EQ(Json::parse(read.out)["tokens"], 25);
  EXPECT_EQ(Json::parse(read.out)["read"], 9);
  EXPECT_EQ(objects({"--state", path("c.state"), "-n", "12", "--temp", "0"})[0]["tokens"],
            objects({"--state", path("a.state"), "-p", "There was", "-n", "12", "--temp", "0"})[0]["tokens"]);
  EXPECT_EQ(folder.names(), Names({"a.state", "b.state", "c.state", "model", "more"}));
}

/// Half of a character at the end of the first process, whose other half the second begins with.
TEST_F(GenerateCommand, TwoProcessesPrintWhatOneWould) {
  // So strong a penalty makes every byte come once before any comes again: some pair of them is a character.
  const Names how = {"--temp", "0", "--repeat-penalty", "100", "--repeat-window", "1024"};
  const auto with = [&](Names args) {
    args.insert(args.end(), how.begin(), how.end());
    return args;
  };
  const Json whole = objects(with({"-p", "Once", "-n", "256"}))[0];
  const auto tokens = whole["tokens"].get<std::vector<int>>();
  size_t at = 1;
  while (at < tokens.size() && !(tokens[at - 1] >= 0xC2 && tokens[at - 1] < 0xE0 && (tokens[at] & 0xC0) == 0x80)) ++at;
  ASSERT_LT(at, tokens.size()) << "no character of two bytes";
  const std::string first = std::to_string(at), rest = std::to_string(tokens.size() - at);
  const Json a = objects(with({"-p", "Once", "-n", first, "--save", path("a.state")}))[0];
  const Json b = objects(with({"--state", path("a.state"), "-n", rest}))[0];
  std::vector<int> both = a["tokens"];
  for (const Json& token : b["tokens"]) both.push_back(token);
  EXPECT_EQ(both, tokens) << "the penalty has forgotten what came before the save";
  EXPECT_EQ(a["text"].get<std::string>() + b["text"].get<std::string>(), whole["text"].get<std::string>());
  std::string out = generate(with({"-p", "Once", "-n", first, "--save", path("a.state")})).out;
  out.pop_back();  // the newline that ends the output
  out += generate(with({"--state", path("a.state"), "-n", rest})).out;
  EXPECT_EQ(out, generate(with({"-p", "Once", "-n", "256"})).out);
}

TEST_F(GenerateCommand, InterruptedSavesTheState) {
  const Names args = {"generate", "-m", path("model"), "-t", "1", "-p", "Once", "-n", "1000000000", "--save"};
  for (const int number : {SIGINT, SIGTERM}) {
    Names all = args;
    all.push_back(path("a.state"));
    Program program(all, folder.path());
    while (program.running() && program.out().size() < 5) ::usleep(1000);
    program.signal(number);
    const ProgramResult stopped = program.wait();
    EXPECT_EQ(stopped.code, 130) << stopped.err;
    EXPECT_NE(stopped.err.find("lineal generate -m " + path("model") + " --state " + path("a.state")),
              std::string::npos)
        << stopped.err;
    ASSERT_TRUE(std::filesystem::exists(folder / "a.state"));
    const auto tokens = objects({"--state", path("a.state"), "-n", "0"})[0]["restored_tokens"].get<int64_t>();
    EXPECT_GT(tokens, 4);
    const std::string length = std::to_string(tokens - 4);
    EXPECT_EQ(stopped.out, generate({"-p", "Once", "-n", length, "--save", path("b.state")}).out);
    EXPECT_TRUE(read_file(folder / "a.state") == read_file(folder / "b.state"));
    std::filesystem::remove(folder / "a.state");
  }
}

/// So that what does not fit ends in "out of memory", not by the kernel's killer.
TEST_F(GenerateCommand, MemoryIsLimitedToWhatTheMachineHas) {
  Program program({"generate", "-m", path("model"), "-t", "1", "-p", "Once", "-n", "1000000000"}, folder.path());
  while (program.running() && program.out().empty()) ::usleep(1000);
  const std::string limits = read_file("/proc/" + std::to_string(program.id()) + "/limits"), name = "Max data size";
  const size_t at = limits.find(name);
  ASSERT_NE(at, std::string::npos) << limits;
  const auto limit = std::strtoll(limits.c_str() + at + name.size(), nullptr, 10);  // 0: unlimited
  EXPECT_GT(limit, 0) << limits;
  EXPECT_LT(limit, machine_memory() + (int64_t{1} << 30)) << limits;
}

TEST_F(GenerateCommand, ReadingShowsProgressOnATerminalAlone) {
  write_atomic(folder / "text", std::string(9001, 'x'));
  for (const Names& more :
       {Names{"read", path("text"), "-o", path("a.state")}, Names{"generate", "-f", path("text"), "-n", "2"}}) {
    Names args = more;
    args.insert(args.end(), {"-m", path("model"), "-t", "1"});
    const ProgramResult terminal = run_program(args, folder.path(), {.terminal = true});
    EXPECT_EQ(terminal.code, 0);
    for (const char* part : {"[=", "9.0k tokens", "tokens/s"}) {
      EXPECT_NE(terminal.err.find(part), std::string::npos) << part << " in " << terminal.err;
    }
    EXPECT_TRUE(terminal.err.ends_with("\r\033[K")) << "the bar is not cleared";
    EXPECT_EQ(run_program(args, folder.path()).err, "");
  }
}

TEST_F(GenerateCommand, ModelsWithoutATokenizerAreRefused) {
  LanguageModelConfig config;
  config.vocab_size = 300;
  config.hidden_size = 16;
  config.tokenizer = "";
  config.layers = parse_plan("identity");
  save_model(LanguageModel(config), folder / "model");
  for (const ProgramResult& result : {generate({"-p", "a"}), run("read", {"-", "-o", path("x.state")}, "text")}) {
    EXPECT_TRUE(refused(result, {"this model has 300 tokens", "expected one that reads text"}));
    EXPECT_EQ(result.err.find("--tokens"), std::string::npos) << result.err;
  }
}

TEST_F(GenerateCommand, RefusesBadStates) {
  ASSERT_EQ(run("read", {"-", "-o", path("a.state")}, "Once").code, 0);
  const std::string bytes = read_file(folder / "a.state");
  write_atomic(folder / "cut.state", std::string_view(bytes).substr(0, bytes.size() - 9));
  write_atomic(folder / "bad.state", bytes.substr(0, bytes.size() - 1) + "?");
  EXPECT_TRUE(refused(generate({"--state", path("missing.state")}), {path("missing.state")}));
  EXPECT_TRUE(refused(generate({"--state", path("cut.state")}), {path("cut.state")}));
  EXPECT_TRUE(refused(generate({"--state", path("bad.state")}), {path("bad.state"), "damaged"}));
  EXPECT_TRUE(refused(generate({"--state", path("model/model.safetensors")}), {"format is 'pt'"}));
  const std::string before = fingerprint(*load_native_model(folder / "model"));
  at::manual_seed(77);
  write_model("model");
  EXPECT_TRUE(refused(generate({"--state", path("a.state")}),
                      {"another model", before, fingerprint(*load_native_model(folder / "model"))}));
}

TEST_F(GenerateCommand, RefusesBadCommandLines) {
  write_atomic(folder / "two.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
  EXPECT_TRUE(refused(generate({}), {"no prompt", "-p"}));
  EXPECT_TRUE(refused(generate({"-p", ""}), {"no prompt"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "--top_k", "3"}), {"--top_k", "'--top-k'"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "--top-p", "1.5"}), {"top_p", "1.5"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "--temp", "hot"}), {"temp", "hot"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "-n", "-1"}), {"--length", "-1"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "-s", "-1"}), {"--seed", "-1", "9007199254740992"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "--seed=9007199254740993"}), {"--seed", "9007199254740993"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "--stop", ""}), {"stop string is empty"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "--count", "2", "--save", path("x.state")}), {"--save", "--count"}));
  EXPECT_TRUE(refused(generate({"-p", "a", "-f", path("two.jsonl")}), {"--file"}));
  EXPECT_TRUE(refused(run("read", {path("two.jsonl"), "-o", path("x.state")}), {"several documents"}));
  EXPECT_TRUE(refused(generate({"-f", path("two.jsonl")}), {"generate: ", "several documents"}));
  EXPECT_TRUE(refused(run("read", {"-", "-o", path("x.state")}, ""), {"no text"}));
  EXPECT_EQ(folder.names(), Names({"model", "two.jsonl"}));
}

TEST_F(GenerateCommand, RefusesOutputThatCannotBeWritten) {
  EXPECT_TRUE(refused(run("read", {"-", "-o", "/proc/x.state"}, "Once"), {"/proc/x.state"}));
  EXPECT_TRUE(refused(run("read", {"-", "-o", "/dev/full"}, "Once"), {"/dev/full", "No space left"}));
  EXPECT_TRUE(refused(run("read", {"-", "-o", path("no/x.state")}, "Once"), {path("no"), "does not exist"}));
  EXPECT_TRUE(refused(run("generate", {"-p", "a", "-n", "3"}, "", "/dev/full"), {"standard output"}));
  EXPECT_EQ(folder.names(), Names({"model"}));
}

TEST_F(GenerateCommand, NothingButAnOlderStateIsWrittenOver) {
  namespace fs = std::filesystem;
  const std::string prompt = "Once upon a time";
  write_atomic(folder / "text", prompt);
  write_atomic(folder / "notes", "mine");
  fs::create_symlink("text", folder / "link");
  const std::string weights = read_file(folder / "model/model.safetensors");
  for (const auto& [out, part] :
       std::vector<std::pair<std::string, std::string>>{{"text", "is the file that is read"},
                                                        {"link", "is the file that is read"},
                                                        {"model/model.safetensors", "in the folder of the model"},
                                                        {"model/config.json", "in the folder of the model"},
                                                        {"notes", "is no state of lineal"}}) {
    EXPECT_TRUE(refused(run("read", {path("text"), "-o", path(out)}), {"read: --output " + path(out), part}));
    EXPECT_TRUE(refused(generate({"-f", path("text"), "-n", "2", "--save", path(out)}),
                        {"generate: --save " + path(out), part}));
  }
  save_safetensors(folder / "tensors", {{"input_ids", at::zeros({1, 3}, at::kLong)}});
  EXPECT_TRUE(refused(run("read", {path("text"), "-o", path("tensors")}), {"is no state of lineal"}));
  EXPECT_EQ(read_file(folder / "text"), prompt);
  EXPECT_EQ(read_file(folder / "notes"), "mine");
  EXPECT_TRUE(read_file(folder / "model/model.safetensors") == weights);
  EXPECT_TRUE(fs::is_symlink(folder / "link"));

  write_atomic(folder / "empty", "");
  EXPECT_EQ(run("read", {path("text"), "-o", path("empty")}).code, 0);
  EXPECT_EQ(run("read", {path("text"), "-o", path("a.state")}).code, 0);
  const std::string first = read_file(folder / "a.state");
  EXPECT_EQ(run("read", {path("text"), "--state", path("a.state"), "-o", path("a.state")}).code, 0);
  EXPECT_EQ(objects({"--state", path("a.state"), "-n", "3", "--save", path("a.state")})[0]["restored_tokens"], 32);
  EXPECT_FALSE(read_file(folder / "a.state") == first);
  EXPECT_EQ(run("read", {path("text"), "-o", "/dev/null"}).code, 0);
}

TEST_F(GenerateCommand, FullDiskLeavesTheOldState) {
  std::filesystem::create_directory(folder / "disk");
  if (::mount("tmpfs", (folder / "disk").c_str(), "tmpfs", 0, "size=4k") != 0) {
    GTEST_SKIP() << "mounting a small tmpfs: " << std::strerror(errno);
  }
  save_safetensors(folder / "disk/x.state", {}, {{"format", "lineal-state-1"}});  // takes the one page there is
  const std::string old = read_file(folder / "disk/x.state");
  EXPECT_TRUE(refused(run("read", {"-", "-o", path("disk/x.state")}, "Once"), {"No space left on device"}));
  EXPECT_EQ(read_file(folder / "disk/x.state"), old);
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "disk")) files += entry.exists();
  EXPECT_EQ(files, 1u);
  EXPECT_EQ(::umount((folder / "disk").c_str()), 0);
}

}  // namespace
}  // namespace lineal
