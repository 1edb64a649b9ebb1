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
  EXPECT_TRUE(has(names(all["tokenizers"]), "bytes"));
  EXPECT_TRUE(has(names(all["model_families"]), "lineal"));
  EXPECT_TRUE(has(names(all["model_families"]), "ttt"));
  EXPECT_TRUE(has(names(all["commands"]), "generate"));
  const ProgramResult plain = lineal({"list"}), usage = lineal({});
  for (const auto& [kind, section] : all.items()) {
    for (const std::string& name : names(section)) {
      EXPECT_NE(plain.out.find("\n  " + name + " "), std::string::npos) << kind << ": " << name;
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

TEST(ListCommand, EveryCommandHasHelp) {
  for (const std::string& name : names(Json::parse(lineal({"list", "--json"}).out)["commands"])) {
    const ProgramResult help = lineal({name, "--help"});
    EXPECT_EQ(help.code, 0) << help.err;
    EXPECT_NE(help.out.find("--help"), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace lineal
