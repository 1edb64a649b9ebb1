// The commands on published model directories, as a user runs them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "backbones/model_files.h"
#include "core/error.h"
#include "core/safetensors.h"
#include "testing/program.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using Names = std::vector<std::string>;

class PublishedCommand : public testing::TestWithParam<std::string> {
 protected:
  PublishedCommand() {
    std::string some;
    for (int i = 0; i < 400; ++i) some += static_cast<char>('a' + i * i % 23);
    write_atomic(folder / "text", some);
  }
  std::string model() const { return std::string(LINEAL_TESTDATA) + "/models/" + GetParam(); }
  std::string path(const std::string& name) const { return (folder / name).string(); }
  ProgramResult run(const Names& args) const { return run_program(args, folder.path()); }
  Json json(const Names& args) const {
    const ProgramResult result = run(args);
    EXPECT_EQ(result.code, 0) << result.err;
    return Json::parse(result.out.substr(0, result.out.find('\n')), nullptr, false);
  }
  TemporaryFolder folder;
};

TEST_P(PublishedCommand, TakesItsDirectory) {
  const Json whole = json({"generate", "-m", model(), "-p", "abcd", "-n", "5", "--temp", "0", "--json"});
  ASSERT_EQ(run({"read", path("text"), "-m", model(), "-o", path("s.state")}).code, GetParam() == "gpt2" ? 2 : 0)
      << "gpt2 has 128 positions, the text 400 tokens";
  write_atomic(folder / "short", "ab");
  ASSERT_EQ(run({"read", path("short"), "-m", model(), "-o", path("s.state")}).code, 0);
  const Json rest =
      json({"generate", "-m", model(), "--state", path("s.state"), "-p", "cd", "-n", "5", "--temp", "0", "--json"});
  EXPECT_EQ(rest["text"], whole["text"]) << whole << rest;
  const Json loss = json({"eval", "-m", model(), path("text"), "--max-context", "60", "--json"});
  EXPECT_GT(loss["tokens"], 300) << loss;

  const ProgramResult trained =
      run({"train", path("text"), "-o", path("run"), "--init", model(), "-c", "16", "--batch-size", "2", "--steps", "2",
           "--validation", "0", "--pack", "none", "-t", "1"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  EXPECT_EQ(run({"convert", "-m", path("run"), "--to", GetParam() == "gpt2" ? "gpt2" : "rwkv", "-o", path("out")}).code,
            0);
}

INSTANTIATE_TEST_SUITE_P(Families, PublishedCommand, testing::Values("gpt2", "rwkv4"),
                         [](const auto& info) { return info.param; });

class Converted : public PublishedCommand {};

TEST_P(Converted, ThereAndBack) {
  ASSERT_EQ(run({"convert", "-m", model(), "--to", "lineal", "-o", path("own")}).code, 0);
  EXPECT_EQ(read_model_config(folder / "own")["model_type"], "lineal");
  write_atomic(folder / "own/tokenizer_config.json", "{}");
  ASSERT_EQ(run({"convert", "-m", path("own"), "--to", "llama", "--dtype", "bfloat16", "-o", path("back")}).code, 0);
  EXPECT_TRUE(std::filesystem::exists(folder / "back/tokenizer_config.json"));
  const SafeTensors before = load_safetensors(model() + "/model.safetensors");
  const SafeTensors after = load_safetensors(folder / "back/model.safetensors");
  ASSERT_EQ(after.tensors.size(), before.tensors.size());
  for (const auto& [name, tensor] : before.tensors) {
    EXPECT_TRUE(after.at(name, "back").equal(tensor.to(at::kBFloat16))) << name;
  }
}

TEST_P(Converted, MistakesEndInOneLine) {
  EXPECT_TRUE(refused(run({"convert", "-m", model(), "-o", path("new")}),
                      {"convert: nothing to change, expected --layers PLAN"}));
  EXPECT_TRUE(refused(run({"convert", "-m", model(), "--to", "lama", "-o", path("new")}),
                      {"unknown model_type 'lama'", "did you mean 'llama'"}));
  EXPECT_TRUE(refused(run({"convert", "-m", model(), "--to", "lineal", "--dtype", "float8", "-o", path("new")}),
                      {"unknown --dtype 'float8'", "bfloat16"}));
  EXPECT_TRUE(refused(run({"convert", "-m", model(), "--to", "gpt2", "-o", path("new")}),
                      {"convert: gpt2 has no such model: layer 0: ", ", it has "}));
  EXPECT_EQ(folder.names(), Names({"text"}));
}

INSTANTIATE_TEST_SUITE_P(Llama, Converted, testing::Values("llama_gqa"), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lineal
