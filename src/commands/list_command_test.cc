// lineal, lineal list and --help as a user runs them.
#include <gtest/gtest.h>

#include "core/config.h"
#include "testing/program.h"

namespace lineal {
namespace {

ProgramResult lineal(const std::vector<std::string>& args) {
  const TemporaryFolder folder;
  return run_program(args, folder.path());
}

/// The names of a section of list --json.
std::vector<std::string> names(const Json& section) {
  std::vector<std::string> result;
  for (const Json& item : section) {
    EXPECT_FALSE(item["help"].get<std::string>().empty()) << item.dump();
    result.push_back(item["name"]);
  }
  return result;
}

bool has(const std::vector<std::string>& list, const std::string& name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

TEST(ListCommand, NamesWhatCanBeChosen) {
  const ProgramResult json = lineal({"list", "--json"});
  ASSERT_EQ(json.code, 0) << json.err;
  const Json all = Json::parse(json.out);
  EXPECT_TRUE(has(names(all["mixers"]), "ttt_linear"));
  EXPECT_TRUE(has(names(all["objectives"]), "causal_lm"));
  EXPECT_TRUE(has(names(all["positions"]), "dynamic_ntk"));
  EXPECT_TRUE(has(names(all["tokenizers"]), "bytes"));
  EXPECT_TRUE(has(names(all["model_families"]), "lineal"));
  EXPECT_TRUE(has(names(all["model_families"]), "ttt"));
  EXPECT_TRUE(has(names(all["commands"]), "generate"));
  const ProgramResult plain = lineal({"list"}), usage = lineal({});
  const size_t column = std::string("  performer_bidirectional  ").size();  // after the longest name
  for (const auto& [kind, section] : all.items()) {
    for (const std::string& name : names(section)) {
      const size_t at = plain.out.find("\n  " + name + " ");
      ASSERT_NE(at, std::string::npos) << kind << ": " << name;
      EXPECT_EQ(plain.out.find_first_not_of(' ', at + 3 + name.size()), at + 1 + column) << kind << ": " << name;
      if (kind != "commands") continue;
      EXPECT_NE(usage.out.find("\n  " + name + " "), std::string::npos) << name;
    }
  }
}

TEST(ListCommand, NamesAMixersFields) {
  const Json json = Json::parse(lineal({"list", "mamba", "--json"}).out);
  EXPECT_EQ(json["name"], "mamba");
  EXPECT_EQ(json["fields"]["expand"], 2);
  const ProgramResult plain = lineal({"list", "mamba"});
  for (const auto& [name, value] : json["fields"].items()) {
    EXPECT_NE(plain.out.find("  " + name + " = " + value.dump()), std::string::npos) << name;
  }
  EXPECT_TRUE(refused(lineal({"list", "mambo"}), {"list: unknown mixer 'mambo'", "did you mean 'mamba'"}));
  EXPECT_TRUE(refused(lineal({"lst"}), {"unknown command 'lst'", "did you mean 'list'"}));
}

TEST(ListCommand, HelpIsWhatNoArgumentsPrint) {
  const ProgramResult help = lineal({"help"}), usage = lineal({});
  EXPECT_EQ(help.code, 0) << help.err;
  EXPECT_EQ(help.out, usage.out);
}

TEST(ListCommand, HelpShowsDefaults) {
  const auto shows = [](const std::string& command, const std::string& flag, const std::string& value) {
    const std::string help = lineal({command, "--help"}).out;
    const size_t at = help.find(flag + " ");
    if (at == std::string::npos) return false;
    const std::string line = help.substr(at, help.find('\n', at) - at);
    return line.find("=" + value) != std::string::npos || line.find("[" + value + "]") != std::string::npos;
  };
  const std::vector<std::vector<std::string>> cases = {
      {"generate", "--length", "256"},      {"generate", "--count", "1"}, {"generate", "--seed", "0"},
      {"generate", "--kernels", "auto"},    {"eval", "--chunk", "2048"},  {"eval", "--buckets", "256"},
      {"train", "--layers", "ttt_linear*4"}};
  for (const auto& words : cases) EXPECT_TRUE(shows(words[0], words[1], words[2])) << words[0] << " " << words[1];
  EXPECT_NE(lineal({"eval", "--help"}).out.find("--threads INT:INT in [1 - 4096]"), std::string::npos);
  EXPECT_FALSE(lineal({"eval", "--help"}).out.find("--threads INT:INT in [1 - 4096]\n") != std::string::npos);
  EXPECT_NE(lineal({"generate", "--help"}).out.find("not again"), std::string::npos);
}

TEST(ListCommand, EveryCommandHasHelp) {
  for (const std::string& name : names(Json::parse(lineal({"list", "--json"}).out)["commands"])) {
    const ProgramResult help = lineal({name, "--help"});
    EXPECT_EQ(help.code, 0) << help.err;
    EXPECT_NE(help.out.find("--help"), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace lineal
