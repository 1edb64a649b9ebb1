// lineal train as a user meets it: mistakes, interruptions, kills, full disks.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mount.h>

#include <chrono>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "core/config.h"
#include "testing/gzip_of.h"
#include "testing/program.h"
#include "testing/run_content.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;
using Args = std::vector<std::string>;

void pause(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

class TrainProgram : public ::testing::Test {
 protected:
  TrainProgram() {
    std::ofstream text(folder_ / "text.txt");
    std::mt19937 random(7);
    for (int i = 0; i < 900; ++i) text << "line " << i << " of " << random() % 97 << (i % 13 == 0 ? "\n\n" : "\n");
  }

  /// A tiny model on the text; flags in `more` replace the same ones here.
  Args tiny(const std::string& run, const Args& more = {}) const {
    Args args = {"train", folder_ / "text.txt", "--out", folder_ / run};
    const std::vector<std::pair<std::string, std::string>> flags = {{"--layers", "ttt_linear(mini_batch_size=8)"},
                                                                    {"--num-attention-heads", "3"},
                                                                    {"--hidden-size", "12"},
                                                                    {"--intermediate-size", "20"},
                                                                    {"--batch-size", "2"},
                                                                    {"-c", "37"},
                                                                    {"--validation", "0.1"},
                                                                    {"-t", "1"}};
    for (const auto& [flag, value] : flags) {
      const auto same = [&flag = flag](const std::string& word) {
        return word == flag || word.starts_with(flag + "=");
      };
      if (std::none_of(more.begin(), more.end(), same)) args.insert(args.end(), {flag, value});
    }
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  ProgramResult run(const Args& args) const { return run_program(args, folder_.path()); }
  ProgramResult resume(const std::string& name, const Args& more = {}) const {
    Args args = {"train", "--resume", folder_ / name, "-t", "1"};
    args.insert(args.end(), more.begin(), more.end());
    return run(args);
  }
  fs::path checkpoint(const std::string& name, int64_t step) const {
    return folder_ / name / "checkpoints" / ("step-" + std::to_string(step));
  }
  static bool wait_for(Program& program, const std::function<bool()>& condition) {
    while (!condition()) {
      if (!program.running()) return false;
      pause(0.001);
    }
    return true;
  }

  TemporaryFolder folder_;
};

TEST_F(TrainProgram, MistakesEndInOneLineAndLeaveNothing) {
  const std::string text = folder_ / "text.txt", out = folder_ / "run";
  std::ofstream(folder_ / "empty.txt");
  const auto with = [&](const Args& more) { return run(tiny("run", more)); };
  const std::vector<std::pair<Args, std::vector<std::string>>> cases = {
      {{"--hiden-size", "8"}, {"--hiden-size", "did you mean '--hidden-size'"}},
      {{"--steps", "0"}, {"steps is 0", "from 1"}},
      {{"--batch-size=-3"}, {"batch_size is -3", "from 1"}},
      {{"--steps", "99999999999999999999"}, {"steps is"}},
      {{"--lr", "fast"}, {"lr is 'fast'", "a number"}},
      {{"--min-lr", "0.5"}, {"min_lr is 0.5"}},
      {{"--carry", "detachd"}, {"carry is", "detached differentiable", "did you mean 'detached'?"}},
      {{"--num-attention-heads", "5"}, {"num_attention_heads is 5", "divisor of hidden_size 12"}},
      {{"--objective", "causal_ml"}, {"did you mean 'causal_lm'"}},
      {{"--lr-scale", "*.W7=2"}, {"lr_scale", "*.W7"}},
      {{"--tokenizer", "byte"}, {"did you mean 'bytes'"}},
      {{"--batch-size", "1048576", "--accumulate", "1048576"}, {"GiB", "batch_size 1048576"}},
      {{"--init", folder_ / "nothing"}, {"--init"}},
      {{"surplus.txt"}, {"surplus.txt"}},
  };
  for (const auto& [more, parts] : cases) EXPECT_TRUE(refused(with(more), parts)) << more[0];
  const Args base = {"train", text, "--out", out, "-t", "1"};
  const auto only = [&](Args more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run(more);
  };
  EXPECT_TRUE(refused(only({"--layers", "ttt_linaer*2"}), {"unknown mixer 'ttt_linaer'", "did you mean 'ttt_linear'"}));
  EXPECT_TRUE(refused(only({"--layers", "ttt_linear(mini_batch_siz=3)"}),
                      {"'mini_batch_siz'", "did you mean 'mini_batch_size'"}));
  EXPECT_TRUE(refused(only({"--layers", "ttt_linear*0"}), {"count is '0'"}));
  EXPECT_TRUE(refused(only({"--hidden-size", "1048576"}), {"hidden_size 1048576", "GiB"}));
  EXPECT_TRUE(refused(only({"--init", folder_ / "nothing"}), {"nothing", "does not exist"}));
  EXPECT_TRUE(refused(run({"train", "--out", out}), {"no text"}));
  EXPECT_TRUE(refused(run({"train", text}), {"--out"}));
  write_atomic(folder_ / "short.txt", "abc");
  EXPECT_TRUE(refused(run({"train", folder_ / "short.txt", "--out", out}), {"or --validation 0"}));
  EXPECT_TRUE(refused(run({"train", folder_ / "missing.txt", "--out", out}), {"missing.txt"}));
  EXPECT_TRUE(refused(run({"train", folder_ / "empty.txt", "--out", out}), {"empty.txt"}));
  EXPECT_TRUE(refused(run({"train", "--resume", folder_ / "none"}), {"no run to resume"}));
  EXPECT_FALSE(fs::exists(out));
}

/// Plain text, gzip and JSON lines of it are the same text: the same run, bit for bit.
TEST_F(TrainProgram, LearnsFromGzipAndJsonLines) {
  const std::string text = read_file(folder_ / "text.txt");
  const std::string line = Json{{"body", text}}.dump() + "\n";
  write_atomic(folder_ / "text.gz", gzip_of(text));
  write_atomic(folder_ / "text.jsonl", line);
  write_atomic(folder_ / "text.jsonl.gz", gzip_of(line));
  const auto learned = [&](const std::string& name) {
    Args args = tiny(name + ".run", {"--steps", "2", "--text-field", "body"});
    args[1] = folder_ / name;
    const ProgramResult result = run(args);
    EXPECT_EQ(result.code, 0) << result.err;
    return read_file(checkpoint(name + ".run", 2) / "model.safetensors");
  };
  const std::string expected = learned("text.txt");
  for (const char* name : {"text.gz", "text.jsonl", "text.jsonl.gz"}) EXPECT_TRUE(learned(name) == expected) << name;
  Args args = tiny("wrong", {"--text-field", "text"});
  args[1] = folder_ / "text.jsonl";
  EXPECT_TRUE(
      refused(run(args), {(folder_ / "text.jsonl").string(), "no field 'text'", "body", "name one with --text-field"}));
}

TEST_F(TrainProgram, ShowsProgressOnATerminal) {
  const ProgramResult result =
      run_program(tiny("run", {"--steps", "7", "--log-every", "2"}), folder_.path(), {.terminal = true});
  EXPECT_EQ(result.code, 0);
  for (const char* part : {"] 1/7  loss ", "[========================] 7/7  loss ", " tokens/s", "saved "}) {
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " in " << result.err;
  }
  const ProgramResult pipe = run(tiny("pipe", {"--steps", "7", "--log-every", "2"}));
  EXPECT_EQ(pipe.err.find("7/7"), std::string::npos) << pipe.err;
  EXPECT_NE(pipe.out.find("step 2"), std::string::npos);
}

TEST_F(TrainProgram, MemoryIsThatOfTheSegmentNotOfTheContext) {
  std::ofstream(folder_ / "text.txt") << std::string(400'000, 'x');
  // Freed memory goes back at once: the peak is of what is held, not of holes that small parts leave in the heap.
  ::setenv("MALLOC_MMAP_THRESHOLD_", "65536", 1);
  for (const std::string carry : {"detached", "differentiable"}) {
    const auto peak = [&](int64_t context) {
      const auto result =
          run(tiny(carry + std::to_string(context),
                   {"-c", std::to_string(context), "--segment", "2048", "--steps", "1", "--carry", carry,
                    "--batch-size", "1", "--layers", "mamba(state_size=2)", "--validation", "0"}));
      EXPECT_EQ(result.code, 0) << result.err;
      return result.peak_kib;
    };
    constexpr int64_t kSmall = 1 << 14, kLarge = 1 << 17;
    const int64_t grown = (peak(kLarge) - peak(kSmall)) << 10;
    EXPECT_LT(grown, 64 * (kLarge - kSmall)) << carry << ": of a token only ids, mask and document may be held";
  }
  ::unsetenv("MALLOC_MMAP_THRESHOLD_");
}

TEST_F(TrainProgram, OutOfMemorySaysWhatNeedsLess) {
  const ProgramResult result = run_program(tiny("run", {"--batch-size", "512", "-c", "512", "--hidden-size", "96"}),
                                           folder_.path(), {.most_memory = start_memory() + (1 << 27)});
  EXPECT_EQ(result.code, 2) << result.err;
  for (const char* part : {"train: out of memory, allocating ", "needs less: a smaller --batch-size"}) {
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " in " << result.err;
  }
  EXPECT_EQ(result.err.find("internal error"), std::string::npos) << result.err;
}

TEST_F(TrainProgram, FoldersThatCannotBeWritten) {
  Args args = tiny("run", {"--steps", "1"});
  for (const std::string& out : {std::string("/proc/lineal/run"), (folder_ / "text.txt/run").string()}) {
    args[3] = out;
    EXPECT_TRUE(refused(run(args), {"cannot make the folder " + out}));
  }
  const std::string name(300, 'x');
  EXPECT_TRUE(refused(run(tiny(name)), {"cannot make the folder", "File name too long"}));
  EXPECT_TRUE(refused(run({"train", folder_ / "text.txt", "-o", folder_ / "run", "--init", folder_ / name}),
                      {"cannot read", "File name too long"}));
}

TEST_F(TrainProgram, ARunIsNotStartedTwiceAndGoesOnWithMoreSteps) {
  ASSERT_EQ(run(tiny("run", {"--steps", "2"})).code, 0);
  EXPECT_TRUE(refused(run(tiny("run", {"--steps", "2"})), {"--resume"}));
  EXPECT_TRUE(refused(resume("run", {"--lr", "0.5"}), {"--lr cannot change"}));
  EXPECT_TRUE(refused(resume("run"), {"has made 2 of 2 steps"}));
  EXPECT_EQ(resume("run", {"--steps", "3", "--json"}).code, 0);
  EXPECT_TRUE(fs::exists(checkpoint("run", 3) / "model.safetensors"));
  const std::string told = read_file(folder_ / "run" / "config.json"), text = read_file(folder_ / "text.txt");
  EXPECT_TRUE(refused(resume("run", {"--steps", "1"}), {"has made 3 of 1 steps"}));
  write_atomic(folder_ / "text.txt", text + "one more line");
  EXPECT_TRUE(refused(resume("run", {"--steps", "4", "--json"}), {"the text has changed"}));
  write_atomic(folder_ / "text.txt", "L" + text.substr(1));  // as long as before
  EXPECT_TRUE(refused(resume("run", {"--steps", "4", "--json"}), {"the text has changed"}));
  EXPECT_EQ(read_file(folder_ / "run" / "config.json"), told);
}

TEST_F(TrainProgram, ARunWithoutACheckpointStartsAnew) {
  ASSERT_EQ(run(tiny("whole", {"--steps", "2", "--lr", "0.01"})).code, 0);
  const auto fails = [&] {
    return run_program(tiny("run", {"--batch-size", "512", "-c", "512", "--hidden-size", "96"}), folder_.path(),
                       {.most_memory = start_memory() + (1 << 27)});
  };
  ASSERT_EQ(fails().code, 2);
  ASSERT_TRUE(fs::exists(folder_ / "run" / "config.json"));
  const std::string told = read_file(folder_ / "run" / "config.json");
  EXPECT_TRUE(refused(run(tiny("run", {"--layers", "ttt_linaer"})), {"did you mean 'ttt_linear'"}));
  EXPECT_EQ(read_file(folder_ / "run" / "config.json"), told);
  const auto result = run(tiny("run", {"--steps", "2", "--lr", "0.01"}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find((folder_ / "run").string() + " has no checkpoint: a new one"), std::string::npos)
      << result.err;
  EXPECT_EQ(run_content(folder_ / "run"), run_content(folder_ / "whole"));
  EXPECT_TRUE(refused(run(tiny("run", {"--steps", "2"})), {"holds a run already"}));

  fs::remove_all(folder_ / "run" / "checkpoints");  // as if killed before the first
  const auto resumed = resume("run");
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_NE(resumed.err.find((folder_ / "run").string() + " has no checkpoint yet: it starts from step 0\n"),
            std::string::npos)
      << resumed.err;
  EXPECT_EQ(run_content(folder_ / "run"), run_content(folder_ / "whole"));
}

TEST_F(TrainProgram, StartsFromAModel) {
  ASSERT_EQ(run(tiny("run", {"--steps", "2"})).code, 0);
  const Args args = {"train",   folder_ / "text.txt",
                     "--out",   folder_ / "next",
                     "--init",  folder_ / "run",
                     "--steps", "1",
                     "--lr",    "0",
                     "-t",      "1",
                     "-c",      "37"};
  ASSERT_EQ(run(args).code, 0);
  EXPECT_EQ(read_file(checkpoint("next", 1) / "model.safetensors"),
            read_file(checkpoint("run", 2) / "model.safetensors"));
  // From its first checkpoint on a run needs the model it began with no more.
  const std::string model = read_file(checkpoint("next", 1) / "model.safetensors");
  fs::remove_all(folder_ / "run");
  EXPECT_EQ(resume("next", {"--steps", "2"}).code, 0);
  EXPECT_EQ(read_file(checkpoint("next", 2) / "model.safetensors"), model);
}

TEST_F(TrainProgram, LearnsFromATeacher) {
  ASSERT_EQ(run(tiny("teacher", {"--layers", "attention*2", "--steps", "30"})).code, 0);
  const std::string teacher = folder_ / "teacher", student = folder_ / "student";
  ASSERT_EQ(run({"convert", "-m", teacher, "--mixer", "linear_attention", "-o", student}).code, 0);
  const Args more = {
      "train", folder_ / "text.txt", "--init", student,        "--distill", teacher,        "-t", "1",           "-c",
      "37",    "--batch-size",       "2",      "--validation", "0.1",       "--eval-every", "10", "--log-every", "10",
      "--json"};
  const auto with = [&](Args args, const Args& last) {
    args.insert(args.end(), last.begin(), last.end());
    return args;
  };
  const ProgramResult learnt = run(with(more, {"--out", folder_ / "learnt", "--steps", "40", "--match-steps", "30"}));
  ASSERT_EQ(learnt.code, 0) << learnt.err;
  std::istringstream lines(learnt.out);
  std::vector<Json> list;
  for (std::string line; std::getline(lines, line);) list.push_back(Json::parse(line));
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[0]["minimised"], "match");
  EXPECT_EQ(list[2]["minimised"], "match");
  EXPECT_EQ(list[3]["minimised"], "distill");
  EXPECT_LT(list[2]["loss"].get<double>(), list[0]["loss"].get<double>());
  EXPECT_LT(list[3]["validation_loss"].get<double>(), list[0]["validation_loss"].get<double>());

  const ProgramResult halved = run(with(more, {"--out", folder_ / "halved", "--steps", "4", "--save-every", "2"}));
  ASSERT_EQ(halved.code, 0) << halved.err;
  EXPECT_EQ(Json::parse(read_file(folder_ / "halved" / "config.json"))["train"]["match_steps"], 2);
  fs::remove_all(checkpoint("halved", 4));
  ASSERT_EQ(resume("halved").code, 0);

  EXPECT_TRUE(refused(run(tiny("no", {"--match-steps", "3"})), {"--match-steps goes with --distill"}));
  EXPECT_TRUE(refused(run(tiny("no", {"--distill", teacher, "--steps", "4"})),
                      {"the teacher has 2 layers of width 12, the model 1", "--match-steps 0"}));
}

TEST_F(TrainProgram, AnInitialModelThatChangedBeforeTheFirstCheckpointIsRefused) {
  ASSERT_EQ(run(tiny("first", {"--steps", "1"})).code, 0);
  const Args args = {"train",   folder_ / "text.txt",
                     "--out",   folder_ / "run",
                     "--init",  folder_ / "first",
                     "--steps", "1",
                     "-c",      "37",
                     "-t",      "1"};
  ASSERT_EQ(run(args).code, 0);
  const auto whole = run_content(folder_ / "run");
  fs::remove_all(folder_ / "run" / "checkpoints");  // as if killed before
  ASSERT_EQ(resume("run").code, 0);
  EXPECT_EQ(run_content(folder_ / "run"), whole);
  fs::remove_all(folder_ / "run" / "checkpoints");
  ASSERT_EQ(resume("first", {"--steps", "4"}).code, 0);
  EXPECT_TRUE(refused(resume("run"), {(folder_ / "first").string() + " has changed", "no checkpoint yet"}));
}

TEST_F(TrainProgram, PathsAreKeptSoThatAnyFolderWillDo) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_.path());
  Args args = tiny("first", {"--steps", "1"});
  args[1] = "text.txt";
  ASSERT_EQ(run(args).code, 0);
  ASSERT_EQ(run({"train", "text.txt", "--out", "run", "--init", "first", "--steps", "1", "-c", "37", "-t", "1"}).code,
            0);
  fs::remove_all(folder_ / "run" / "checkpoints");
  fs::current_path(before);
  const auto result = resume("run", {"--steps", "2"});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST_F(TrainProgram, RunsInTheFolderOfTheTextAreNoText) {
  fs::create_directory(folder_ / "data");
  fs::copy(folder_ / "text.txt", folder_ / "data" / "text.txt");
  Args args = tiny("data/runs/a", {"--steps", "2", "--log-every", "1"});
  args[1] = folder_ / "data";
  ASSERT_EQ(run(args).code, 0);
  const auto result = resume("data/runs/a", {"--steps", "3"});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST_F(TrainProgram, GoesOnWithAsManyThreadsAsItBeganWith) {
  ASSERT_EQ(run(tiny("run", {"--steps", "1", "-t", "3"})).code, 0);
  const auto threads = [&](const Args& more) {
    Args args = {"train", "--resume", folder_ / "run"};
    args.insert(args.end(), more.begin(), more.end());
    const auto result = run(args);
    EXPECT_EQ(result.code, 0);
    const auto end = result.err.find(" threads\n");
    return end == std::string::npos ? result.err : result.err.substr(end - 3, 3);
  };
  EXPECT_EQ(threads({"--steps", "2"}), "; 3");
  EXPECT_EQ(threads({"--steps", "3", "-t", "5"}), "; 5");
  EXPECT_EQ(threads({"--steps", "4"}), "; 5");
}

TEST_F(TrainProgram, TheSeedDecidesTheParametersAndTheOrderOfTheText) {
  const auto begun = [&](const std::string& name, const std::string& seed) {
    EXPECT_EQ(run(tiny(name, {"--steps", "1", "--lr", "0", "--seed", seed})).code, 0);
    return read_file(checkpoint(name, 1) / "model.safetensors");
  };
  const std::string one = begun("a", "1");
  EXPECT_EQ(begun("b", "1"), one);
  EXPECT_NE(begun("c", "2"), one);
  const auto loss = [&](const std::string& name, const std::string& seed) {
    const auto result = run({"train", folder_ / "text.txt", "--out", folder_ / name, "--init", folder_ / "a", "--steps",
                             "1", "--lr", "0", "-c", "37", "-t", "1", "--json", "--seed", seed});
    EXPECT_EQ(result.code, 0) << result.err;
    return Json::parse(result.out)["loss"].get<double>();
  };
  const double of_one = loss("d", "1");
  EXPECT_EQ(loss("e", "1"), of_one);
  EXPECT_NE(loss("f", "2"), of_one);
}

TEST_F(TrainProgram, TakesTheFieldOfJsonLinesThatIsNamed) {
  std::ofstream lines(folder_ / "text.jsonl");
  for (int i = 0; i < 40; ++i) lines << "{\"text\": \"short\", \"body\": \"a body of text number " << 10 + i << "\"}\n";
  lines.close();
  Args args = tiny("run", {"--steps", "1", "--text-field", "body", "--validation", "0"});
  args[1] = folder_ / "text.jsonl";
  ASSERT_EQ(run(args).code, 0);
  EXPECT_EQ(Json::parse(read_file(folder_ / "run" / "config.json"))["corpus"]["tokens"], 40 * 24);
}

TEST_F(TrainProgram, TheFolderOfTheRunIsCheckedBeforeTheTextIsRead) {
  ASSERT_EQ(run(tiny("run", {"--steps", "1"})).code, 0);
  std::ofstream(folder_ / "bad.jsonl") << "no JSON";
  const auto into = [&](const std::string& out) {
    Args args = tiny(out, {"--steps", "1"});
    args[1] = folder_ / "bad.jsonl";
    return run(args);
  };
  EXPECT_TRUE(refused(into("run"), {"holds a run already"}));
  EXPECT_TRUE(refused(into("text.txt/run"), {"cannot make the folder"}));
  EXPECT_TRUE(refused(into("new/run"), {"bad.jsonl: line 1"}));
  EXPECT_FALSE(fs::exists(folder_ / "new"));
}

TEST_F(TrainProgram, NamesThatAreNotUtf8AreRefusedInOneLine) {
  const std::string name = folder_ / "te\xffxt.txt";
  fs::copy(folder_ / "text.txt", name);
  Args args = tiny("run", {"--steps", "1"});
  args[1] = name;
  EXPECT_TRUE(refused(run(args), {"te\xef\xbf\xbdxt.txt", "not UTF-8", "rename it"}));
  const std::vector<std::pair<std::string, std::string>> flags = {
      {"--text-field", "--text-field is"}, {"--lr-scale", "lr_scale is"},  {"--carry", "carry is"}, {"--lr", "lr is"},
      {"--tokenizer", "tokenizer is"},     {"--objective", "objective is"}};
  for (const auto& [flag, part] : flags) {
    EXPECT_TRUE(refused(run(tiny("run", {flag, "a\xff"})), {part + " ", "\xef\xbf\xbd"})) << flag;
  }
  EXPECT_TRUE(refused(run({"train", folder_ / "text.txt", "--out", folder_ / "run", "--init", "\xff"}), {"not UTF-8"}));
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(TrainProgram, LinesGoToStandardOutputWhateverStandardErrorIs) {
  const Args flags = {"--steps", "4", "--log-every", "1", "--validation", "0"};
  const auto piped = run_program(tiny("a", flags), folder_.path(), {.terminal = true});
  ASSERT_EQ(piped.code, 0) << piped.err;
  EXPECT_EQ(std::count(piped.out.begin(), piped.out.end(), '\n'), 4) << piped.out;
  EXPECT_NE(piped.err.find("4/4"), std::string::npos) << piped.err;

  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_EQ(::grantpt(terminal) + ::unlockpt(terminal), 0);
  const std::string name = ::ptsname(terminal);
  const int held =
      ::open(name.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC);  // or what was written would go with the program
  const auto shown = run_program(tiny("b", flags), folder_.path(), {.out = name, .terminal = true});
  ASSERT_EQ(shown.code, 0) << shown.err;
  EXPECT_NE(shown.err.find("4/4"), std::string::npos) << shown.err;
  ASSERT_EQ(::fcntl(terminal, F_SETFL, O_NONBLOCK), 0);
  std::string lines(1 << 12, '\0');
  EXPECT_EQ(::read(terminal, lines.data(), lines.size()), -1) << lines;
  ::close(held);
  ::close(terminal);
}

TEST_F(TrainProgram, ReadingALongTextShowsOnATerminal) {
  std::ofstream(folder_ / "long.txt") << std::string(5'000'000, 'x');
  Args args = tiny("run", {"--steps", "1", "--validation", "0"});
  args[1] = folder_ / "long.txt";
  const auto result = run_program(args, folder_.path(), {.terminal = true});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("reading text: 1."), std::string::npos) << result.err;
}

TEST_F(TrainProgram, InterruptedFinishesTheStepSavesAndTellsHowToGoOn) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string name = "run" + std::to_string(signal);
    Program program(tiny(name, {"--steps", "1000000", "--save-every", "1000000"}), folder_.path());
    ASSERT_TRUE(wait_for(program, [&] { return fs::exists(folder_ / name / "metrics.jsonl"); }));
    program.signal(signal);
    const auto result = program.wait();
    EXPECT_EQ(result.code, 130) << result.err;
    EXPECT_NE(result.err.find("lineal train --resume " + (folder_ / name).string()), std::string::npos) << result.err;
    ASSERT_TRUE(fs::exists(folder_ / name / "checkpoints")) << signal;
    const auto names = fs::directory_iterator(folder_ / name / "checkpoints");
    ASSERT_NE(names, fs::directory_iterator());
    const std::string step = names->path().filename().string().substr(5);
    EXPECT_GE(std::stoll(step), 10);
    EXPECT_EQ(resume(name, {"--steps", std::to_string(std::stoll(step) + 1)}).code, 0);
  }
}

TEST_F(TrainProgram, InterruptedTwiceEndsAtOnce) {
  Program program(tiny("run", {"--batch-size", "1", "-c", "4000000", "--segment", "16"}), folder_.path());
  ASSERT_TRUE(wait_for(program, [&] { return fs::exists(folder_ / "run" / "config.json"); }));
  program.signal(SIGINT);
  ASSERT_TRUE(wait_for(program, [&] { return program.err().find("once more") != std::string::npos; }));
  program.signal(SIGINT);
  const auto result = program.wait();
  EXPECT_EQ(result.code, 130) << result.err;
  EXPECT_EQ(result.err.find("--resume"), std::string::npos) << result.err;
  EXPECT_FALSE(fs::exists(folder_ / "run" / "checkpoints"));
}

TEST_F(TrainProgram, KilledTwentyTimesEqualsUninterruptedBitForBit) {
  const Args flags = {"--steps",     "60", "--save-every",   "3", "--eval-every", "7",
                      "--log-every", "2",  "--eval-batches", "2"};
  ASSERT_EQ(run(tiny("whole", flags)).code, 0);
  std::mt19937 random(20240705);
  const auto uniform = [&](double most) { return most * static_cast<double>(random()) / 4294967296.0; };
  const fs::path cut = folder_ / "cut", saved = cut / "checkpoints";
  const auto latest = [&] {  // changes when a checkpoint is begun, finished or removed
    std::error_code ignored;
    return fs::last_write_time(saved, ignored).time_since_epoch().count();
  };
  const auto finished = [&] { return fs::exists(saved / "step-60"); };  // killed between the last save and the exit
  int kills = 0, kills_after_progress = 0;
  while (kills < 20 || finished()) {
    if (finished()) fs::remove_all(cut);
    const bool begun = fs::exists(cut / "config.json");
    Program program(begun ? Args{"train", "--resume", cut, "-t", "1"} : tiny("cut", flags), folder_.path());
    if (kills % 4 == 3) {
      pause(uniform(1.0));  // anywhere, most often while it starts
    } else {
      const auto before = latest();
      wait_for(program, [&] { return latest() != before; });
      pause(uniform(0.02));
      ++kills_after_progress;
    }
    program.signal(SIGKILL);
    const auto result = program.wait();
    if (result.signal == SIGKILL) {
      ++kills;
      continue;
    }
    ASSERT_EQ(result.code, 0) << result.err;  // done before the kill: once more from the start
    fs::remove_all(cut);
  }
  EXPECT_GT(kills_after_progress, 0);
  const auto end = fs::exists(cut / "config.json") ? resume("cut") : run(tiny("cut", flags));
  ASSERT_EQ(end.code, 0) << end.err;
  const auto whole = run_content(folder_ / "whole"), found = run_content(cut);
  ASSERT_TRUE(whole.contains("checkpoints/step-60/optimizer.safetensors"));
  for (const auto& [name, bytes] : whole) {
    ASSERT_TRUE(found.contains(name)) << name;
    EXPECT_TRUE(found.at(name) == bytes) << name;
  }
  EXPECT_EQ(found.size(), whole.size());
}

TEST_F(TrainProgram, AFullDiskKeepsTheCheckpointsBefore) {
  const fs::path disk = folder_ / "disk";
  fs::create_directory(disk);
  if (::mount("none", disk.c_str(), "tmpfs", 0, "size=512k") != 0) {
    GTEST_SKIP() << "mounting a small tmpfs is not permitted here";
  }
  Args args = tiny("disk/run", {"--steps", "1000", "--save-every", "1", "--keep", "0"});
  const auto result = run(args);
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("No space left on device"), std::string::npos) << result.err;
  int checkpoints = 0;
  for (const auto& entry : fs::directory_iterator(disk / "run" / "checkpoints")) {
    EXPECT_TRUE(entry.path().filename().string().starts_with("step-")) << entry.path();
    EXPECT_TRUE(fs::exists(entry.path() / "trainer.json")) << entry.path();
    ++checkpoints;
  }
  EXPECT_GT(checkpoints, 0);
  ::umount(disk.c_str());
}

}  // namespace
}  // namespace lineal
