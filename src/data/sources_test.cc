#include "data/sources.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "core/file.h"
#include "testing/gzip_of.h"
#include "testing/temporary_folder.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

void put(const fs::path& path, const std::string& content) {
  fs::create_directories(path.parent_path());
  write_atomic(path, content);
}

Names found(const TemporaryFolder& folder, const std::vector<std::string>& paths) {
  Names names;
  for (const Source& source : find_sources(paths)) names.push_back(fs::relative(source.path, folder.path()));
  return names;
}

TEST(Sources, FolderInFixedOrder) {
  const TemporaryFolder folder;
  for (const std::string name : {"b.txt", "B.txt", "a/z", "a/b/c", "a.txt", "a-b/x", "10", "9"})
    put(folder / name, "t");
  EXPECT_EQ(found(folder, {folder.path()}), Names({"10", "9", "B.txt", "a/b/c", "a/z", "a-b/x", "a.txt", "b.txt"}));
  EXPECT_EQ(found(folder, {folder / "b.txt", folder / "a", folder / "10", folder / "10"}),
            Names({"b.txt", "a/b/c", "a/z", "10", "10"}));
}

TEST(Sources, PassesOverWhatIsNoText) {
  const TemporaryFolder folder;
  put(folder / "text", "some text");
  put(folder / "empty", "");
  put(folder / ".hidden", "hidden");
  put(folder / ".git/config", "hidden");
  put(folder / "binary", std::string("ab\0cd", 5));
  put(folder / "late nul", std::string(8192, 't') + std::string(1, '\0'));
  put(folder / "nul", std::string(8191, 't') + std::string(1, '\0'));
  put(folder / "archive.gz", gzip_of(std::string(100, '\0')));
  put(folder / "text.gz", gzip_of("text"));
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(found(folder, {folder.path()}), Names({"late nul", "text", "text.gz"}));
  EXPECT_EQ(found(folder, {folder / "binary"}), Names({"binary"}));
}

TEST(Sources, FollowsLinksOnce) {
  const TemporaryFolder folder, outside;
  put(folder / "a/text", "a");
  put(folder / "b/text", "b");
  put(outside / "text", "outside");
  fs::create_directory_symlink("..", folder / "a/up");
  fs::create_directory_symlink("../b", folder / "a/b");
  fs::create_symlink("text", folder / "a/same");
  fs::create_symlink("nowhere", folder / "a/broken");
  fs::create_directory_symlink(outside.path(), folder / "out");
  Names names;
  for (const Source& source : find_sources({folder.path()}))
    names.push_back(source.path.substr(folder.path().native().size()));
  EXPECT_EQ(names, Names({"/a/b/text", "/a/same", "/out/text"}));
}

TEST(Sources, NamesTellTheFormat) {
  const TemporaryFolder folder;
  for (const std::string name : {"x", "x.jsonl", "x.jsonl.gz", "x.gz", "x.json"}) put(folder / name, "12345");
  const auto source = [&](const std::string& name) { return find_sources({folder / name}).at(0); };
  EXPECT_FALSE(source("x").gzip || source("x").json_lines);
  EXPECT_TRUE(!source("x.jsonl").gzip && source("x.jsonl").json_lines);
  EXPECT_TRUE(source("x.jsonl.gz").gzip && source("x.jsonl.gz").json_lines);
  EXPECT_TRUE(source("x.gz").gzip && !source("x.gz").json_lines);
  EXPECT_FALSE(source("x.json").gzip || source("x.json").json_lines);
  EXPECT_TRUE(source("x").regular);
  EXPECT_EQ(source("x").size, 5);
  EXPECT_FALSE(find_sources({"-"}).at(0).regular);
}

TEST(Sources, RefusesWhatHoldsNoText) {
  const TemporaryFolder folder;
  put(folder / "empty", "");
  put(folder / "folder/empty", "");
  put(folder / "folder/binary", std::string(3, '\0'));
  put(folder / "bad/x.gz", "no gzip");
  EXPECT_TRUE(throws_error([] { find_sources({}); }, {"no text given", "-"}));
  EXPECT_TRUE(throws_error([&] { find_sources({folder / "missing"}); },
                           {(folder / "missing").string() + ": No such file", "expected a file, a folder, or -"}));
  EXPECT_TRUE(throws_error([&] { find_sources({folder / "empty"}); }, {(folder / "empty").string(), "is empty"}));
  EXPECT_TRUE(throws_error([&] { find_sources({folder / "folder"}); },
                           {(folder / "folder").string() + ": no text in this folder", "expected at least one"}));
  EXPECT_TRUE(throws_error([&] { find_sources({folder / "bad"}); }, {"bad/x.gz: corrupt gzip"}));
}

TEST(Sources, PassesOverTrainingRuns) {
  const TemporaryFolder folder;
  put(folder / "text", "some text");
  put(folder / "run/config.json", "{\"format\": \"lineal-run-1\", \"data\": []}");
  put(folder / "run/metrics.jsonl", "{\"step\": 1}\n");
  put(folder / "run/notes/more", "text");
  put(folder / "model/config.json", "{\"format\": \"another\"}");
  put(folder / "list/config.json", "[\"lineal-run-1\"]");
  put(folder / "damaged/config.json", "{\"format\": \"lineal-run-1\"");
  EXPECT_EQ(found(folder, {folder.path()}),
            Names({"damaged/config.json", "list/config.json", "model/config.json", "text"}));
  EXPECT_EQ(found(folder, {folder / "run/metrics.jsonl"}), Names({"run/metrics.jsonl"}));
}

}  // namespace
}  // namespace lineal
