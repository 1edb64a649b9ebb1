#include "data/token_store.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <set>
#include <thread>

#include "core/file.h"
#include "core/registry.h"
#include "core/safetensors.h"
#include "testing/gzip_of.h"
#include "testing/temporary_folder.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;
using Documents = std::vector<std::string>;

/// Ids that need more than a byte: byte b is 1000 - b.
class Wide : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 1001; }
  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (const unsigned char c : text) ids.push_back(1000 - c);
    return ids;
  }
  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string bytes;
    for (const int64_t id : ids) bytes.push_back(static_cast<char>(1000 - id));
    return bytes;
  }
};

struct Corpus {
  TemporaryFolder folder, cache;
  std::vector<std::string> paths{folder.path()};
  std::shared_ptr<Tokenizer> bytes = find<TokenizerSpec>("bytes").make();
  Corpus() {
    write_atomic(folder / "a.txt", "first document");
    write_atomic(folder / "b.jsonl",
                 "{\"text\": \"second\", \"title\": \"2\"}\n{\"text\": \"third\", \"title\": \"3\"}\n");
    write_atomic(folder / "c.gz", gzip_of("fourth\xff"));
  }
  const Documents documents = {"first document", "second", "third", "fourth\xff"};

  TokenStoreOptions options() const {
    TokenStoreOptions result;
    result.cache_folder = cache.path();
    return result;
  }
  std::shared_ptr<const TokenStore> open() const { return TokenStore::open(paths, *bytes, "bytes", options()); }
};

Documents decoded(const TokenStore& store, const Tokenizer& tokenizer) {
  Documents documents;
  for (int64_t i = 0; i < store.documents(); ++i) {
    std::vector<int64_t> ids(static_cast<size_t>(store.document(i).size()));
    store.copy(store.document(i), ids.data());
    documents.push_back(tokenizer.decode(ids));
  }
  return documents;
}

TEST(TokenStore, BuildsOnceAndReads) {
  const Corpus corpus;
  for (const bool built : {true, false, false}) {
    const auto store = corpus.open();
    EXPECT_EQ(store->built(), built);
    EXPECT_EQ(store->uncached(), "");
    EXPECT_EQ(store->size(), 14 + 6 + 5 + 7);
    EXPECT_EQ(decoded(*store, *corpus.bytes), corpus.documents);
  }
  ASSERT_EQ(corpus.cache.names().size(), 1u);
  const SafeTensors file = load_safetensors(corpus.cache / corpus.cache.names()[0]);
  EXPECT_EQ(file.at("tokens", "test").scalar_type(), at::kByte);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.at("ends", "test").const_data_ptr()) % 8, 0u);
}

TEST(TokenStore, WideTokens) {
  const Corpus corpus;
  const Wide wide;
  for (const bool built : {true, false}) {
    const auto store = TokenStore::open(corpus.paths, wide, "wide", corpus.options());
    EXPECT_EQ(store->built(), built);
    EXPECT_EQ(decoded(*store, wide), corpus.documents);
  }
  TokenStoreOptions options = corpus.options();
  options.cache_folder.clear();
  EXPECT_EQ(decoded(*TokenStore::open(corpus.paths, wide, "wide", options), wide), corpus.documents);
}

TEST(TokenStore, CopiesAnySpan) {
  const Corpus corpus;
  const auto store = corpus.open();
  std::vector<int64_t> ids(5, -1);
  store->copy({12, 15}, ids.data() + 1);
  EXPECT_EQ(ids, std::vector<int64_t>({-1, 'n', 't', 's', -1}));
}

TEST(TokenStore, EqualTextsHaveEqualHashes) {
  const TemporaryFolder folder;
  const std::string text = "the same text";
  write_atomic(folder / "a", text);
  write_atomic(folder / "b.jsonl", "{\"text\": \"" + text + "\"}\n{\"text\": \"the same texu\"}\n");
  TokenStoreOptions options;
  options.cache_folder.clear();
  const auto store = TokenStore::open({folder.path()}, *find<TokenizerSpec>("bytes").make(), "bytes", options);
  EXPECT_EQ(store->hash(0), store->hash(1));
  EXPECT_NE(store->hash(0), store->hash(2));
}

TEST(TokenStore, BuiltAgainWhenSomethingChanges) {
  const Corpus corpus;
  corpus.open();
  const auto change = [&](const char* what, const std::function<void()>& f) {
    f();
    EXPECT_TRUE(corpus.open()->built()) << what;
    EXPECT_FALSE(corpus.open()->built()) << what;
    EXPECT_EQ(corpus.cache.names().size(), 1u) << what;  // the old file has gone
  };
  change("size", [&] { write_atomic(corpus.folder / "a.txt", "first document, longer"); });
  change("time", [&] {
    fs::last_write_time(corpus.folder / "a.txt",
                        fs::last_write_time(corpus.folder / "a.txt") + std::chrono::seconds(1));
  });
  const auto set_time = [&](fs::file_time_type time) { fs::last_write_time(corpus.folder / "a.txt", time); };
  const auto time = fs::last_write_time(corpus.folder / "a.txt");
  change("a nanosecond", [&] { set_time(time + std::chrono::nanoseconds(1)); });
  change("size at the same time", [&] {
    write_atomic(corpus.folder / "a.txt", "first document, longer again");
    set_time(time + std::chrono::nanoseconds(1));
  });
  TokenStoreOptions other = corpus.options();
  other.text.text_field = "title";
  EXPECT_TRUE(TokenStore::open(corpus.paths, *corpus.bytes, "other bytes", corpus.options())->built());
  EXPECT_TRUE(TokenStore::open(corpus.paths, *corpus.bytes, "bytes", other)->built());
  EXPECT_TRUE(TokenStore::open({corpus.folder / "a.txt"}, *corpus.bytes, "bytes", corpus.options())->built());
  EXPECT_FALSE(corpus.open()->built());
  EXPECT_EQ(corpus.cache.names().size(), 4u);
  write_atomic(corpus.folder / "d", "new");
  EXPECT_EQ(corpus.open()->documents(), 5);
}

TEST(TokenStore, DamagedCacheIsBuiltAgain) {
  const Corpus corpus;
  corpus.open();
  const fs::path file = corpus.cache / corpus.cache.names().at(0);
  const std::string good = read_file(file);
  const SafeTensors tensors = load_safetensors(file);
  const auto damage = [&](const char* what, const std::string& bytes) {
    write_atomic(file, bytes);
    const auto store = corpus.open();
    EXPECT_TRUE(store->built()) << what;
    EXPECT_EQ(store->uncached(), "") << what;
    EXPECT_EQ(decoded(*store, *corpus.bytes), corpus.documents) << what;
  };
  damage("empty", "");
  damage("garbage", std::string(5000, 'g'));
  for (size_t size = 1; size < good.size(); size += 37) damage("truncated", good.substr(0, size));
  const auto with = [&](const char* what, const std::string& name, const Tensor& replacement) {
    auto changed = tensors;
    for (auto& [key, tensor] : changed.tensors) {
      if (key == name) tensor = replacement;
    }
    save_safetensors(corpus.cache / "changed", changed.tensors, changed.metadata);
    damage(what, read_file(corpus.cache / "changed"));
  };
  const Tensor ends = tensors.at("ends", "test");
  with("end past the tokens", "ends", ends + 1);
  with("ends out of order", "ends", at::tensor({20, 14, 25, 32}, at::kLong));
  with("negative end", "ends", at::tensor({-1, 14, 25, 32}, at::kLong));
  with("ends of another type", "ends", ends.to(at::kInt));
  with("a hash too few", "hashes", at::zeros({3}, at::kLong));
  with("tokens of another type", "tokens", tensors.at("tokens", "test").to(at::kFloat));
  with("tokens of another shape", "tokens", tensors.at("tokens", "test").reshape({16, 2}));
}

TEST(TokenStore, InMemoryWithAReason) {
  const Corpus corpus;
  write_atomic(corpus.cache / "file", "");
  TokenStoreOptions options = corpus.options();
  const auto reason = [&](const fs::path& cache, const std::vector<std::string>& paths) {
    options.cache_folder = cache;
    const auto store = TokenStore::open(paths, *corpus.bytes, "bytes", options);
    EXPECT_TRUE(store->built());
    EXPECT_EQ(decoded(*store, *corpus.bytes), corpus.documents);
    return store->uncached();
  };
  EXPECT_EQ(reason("", corpus.paths), "there is no cache folder");
  EXPECT_NE(reason(corpus.cache / "file/folder", corpus.paths).find("file/folder does not exist"), std::string::npos);
  EXPECT_NE(reason("/proc/lineal", corpus.paths).find("cannot write /proc/lineal"), std::string::npos);

  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::write(ends[1], "first document", 14), 14);
  ::close(ends[1]);
  const int saved = ::dup(STDIN_FILENO);
  ::dup2(ends[0], STDIN_FILENO);
  ::close(ends[0]);
  EXPECT_EQ(reason(corpus.cache.path(), {"-", corpus.folder / "b.jsonl", corpus.folder / "c.gz"}),
            "standard input is not a file whose changes can be seen");
  ::dup2(saved, STDIN_FILENO);
  ::close(saved);
  EXPECT_EQ(corpus.cache.names(), Documents{"file"});
}

TEST(TokenStore, FullDiskFallsBackToMemory) {
  const TemporaryFolder disk;
  if (::mount("tmpfs", disk.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "mounting a small tmpfs: " << std::strerror(errno);
  }
  Corpus corpus;
  const std::string text(3'000'001, 't');
  write_atomic(corpus.folder / "d", text);
  TokenStoreOptions options = corpus.options();
  options.cache_folder = disk.path();
  const auto store = TokenStore::open(corpus.paths, *corpus.bytes, "bytes", options);
  EXPECT_NE(store->uncached().find("No space left on device"), std::string::npos) << store->uncached();
  EXPECT_EQ(decoded(*store, *corpus.bytes).back(), text);
  EXPECT_EQ(disk.names(), Documents{});
  EXPECT_EQ(::umount(disk.path().c_str()), 0);
}

TEST(TokenStore, SourceErrorsPassThroughAndLeaveNoFile) {
  const Corpus corpus;
  write_atomic(corpus.folder / "b.jsonl", "{\"text\": \"good\"}\nbad\n");
  EXPECT_TRUE(throws_error([&] { corpus.open(); }, {"b.jsonl: line 2: it is not JSON"}));
  const std::string compressed = gzip_of("text");
  write_atomic(corpus.folder / "b.jsonl", "{\"text\": \"good\"}\n");
  write_atomic(corpus.folder / "c.gz", compressed.substr(0, compressed.size() - 2));
  EXPECT_TRUE(throws_error([&] { corpus.open(); }, {"c.gz: truncated gzip"}));
  EXPECT_TRUE(
      throws_error([&] { TokenStore::open({corpus.folder / "none"}, *corpus.bytes, "bytes", corpus.options()); },
                   {"none: No such file"}));
  EXPECT_EQ(corpus.cache.names(), Documents{});
}

class Liar : public Wide {
 public:
  int64_t vocab_size() const override { return 256; }
};

class Negative : public Wide {
 public:
  std::vector<int64_t> encode(std::string_view) const override { return {3, -1}; }
};

TEST(TokenStore, RefusesIdsOutOfRange) {
  const Corpus corpus;
  EXPECT_TRUE(throws_error([&] { TokenStore::open(corpus.paths, Liar(), "liar", corpus.options()); },
                           {"token id 898, expected 0 to 255"}));
  EXPECT_TRUE(throws_error([&] { TokenStore::open(corpus.paths, Negative(), "negative", corpus.options()); },
                           {"token id -1, expected 0 to 1000"}));
}

TEST(TokenStore, ReportsProgress) {
  const Corpus corpus;
  write_atomic(corpus.folder / "d", std::string(5'000'001, 't'));
  TokenStoreOptions options = corpus.options();
  std::vector<int64_t> reads;
  int64_t sum = 0;
  options.progress = [&](int64_t read, int64_t total) {
    reads.push_back(read);
    sum = total;
  };
  TokenStore::open(corpus.paths, *corpus.bytes, "bytes", options);
  int64_t size = 0;
  for (const Source& source : find_sources(corpus.paths)) size += source.size;
  EXPECT_EQ(sum, size);
  ASSERT_EQ(reads.size(), 4u);
  EXPECT_TRUE(std::is_sorted(reads.begin(), reads.end()));
  EXPECT_LE(reads.back(), size);

  // How much a pipe holds is not known.
  ASSERT_EQ(::mkfifo((corpus.cache / "pipe").c_str(), 0600), 0);
  std::thread writer([&] { write_atomic(corpus.cache / "pipe", std::string(2'000'001, 'p')); });
  reads.clear();
  TokenStore::open({corpus.cache / "pipe", corpus.folder / "d"}, *corpus.bytes, "bytes", options);
  writer.join();
  EXPECT_EQ(sum, 0);
  EXPECT_GT(reads.size(), 4u);
}

TEST(TokenStore, BuildsInConstantMemory) {
  const Corpus corpus;
  const std::string million(1'000'003, 'a');
  std::string file;
  for (int i = 0; i < 48; ++i) file += gzip_of(million);
  write_atomic(corpus.folder / "d.gz", file);
  struct rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  const auto store = corpus.open();
  getrusage(RUSAGE_SELF, &after);
  EXPECT_EQ(store->size(), 32 + 48 * static_cast<int64_t>(million.size()));
  EXPECT_EQ(store->uncached(), "");
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 16 * 1024) << "KiB";
}

TEST(TokenStore, DefaultCacheFolder) {
  const auto keep = [](const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? std::string() : std::string(value);
  };
  const std::string cache = keep("XDG_CACHE_HOME"), home = keep("HOME");
  ::setenv("XDG_CACHE_HOME", "/some/cache", 1);
  EXPECT_EQ(default_cache_folder(), "/some/cache/lineal");
  ::setenv("XDG_CACHE_HOME", "relative", 1);  // to be ignored, says the specification
  ::setenv("HOME", "/home/me", 1);
  EXPECT_EQ(default_cache_folder(), "/home/me/.cache/lineal");
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("HOME");
  EXPECT_EQ(default_cache_folder(), "");
  if (!cache.empty()) ::setenv("XDG_CACHE_HOME", cache.c_str(), 1);
  if (!home.empty()) ::setenv("HOME", home.c_str(), 1);
}

TEST(TokenStore, FingerprintFollowsTextAndOrder) {
  const Corpus corpus;
  const std::string before = corpus.open()->fingerprint();
  EXPECT_EQ(before.size(), 16u);
  EXPECT_EQ(corpus.open()->fingerprint(), before);
  std::set<std::string> all = {before};
  write_atomic(corpus.folder / "a.txt", "first documenT");
  all.insert(corpus.open()->fingerprint());
  write_atomic(corpus.folder / "a.txt", "fourth\xff");
  write_atomic(corpus.folder / "c.gz", gzip_of("first document"));
  all.insert(corpus.open()->fingerprint());
  EXPECT_EQ(all.size(), 3u);
  const auto store = [](std::vector<int64_t> ends) {
    return TokenStore(at::zeros({9}, at::kByte), at::tensor(ends, at::kLong), at::tensor({5, 7}, at::kLong));
  };
  EXPECT_NE(store({4, 9}).fingerprint(), store({5, 9}).fingerprint());
}

TEST(TokenStore, SweepsWhatKilledProcessesLeft) {
  const Corpus corpus;
  const fs::path left = corpus.cache / ".lineal-1-0.tmp";
  write_atomic(left, "half");
  fs::last_write_time(left, fs::file_time_type::clock::now() - std::chrono::hours(1));
  corpus.open();
  EXPECT_FALSE(fs::exists(left));
  EXPECT_EQ(corpus.cache.names().size(), 1u);
}

TEST(TokenStore, FoundUnderAnotherSpellingOfThePath) {
  const Corpus corpus;
  corpus.open();
  const auto open = [&](const std::string& path) {
    return TokenStore::open({path}, *corpus.bytes, "bytes", corpus.options());
  };
  EXPECT_FALSE(open(corpus.folder / "../" / corpus.folder.path().filename())->built());
  const fs::path before = fs::current_path();
  fs::current_path(corpus.folder.path());
  EXPECT_FALSE(open(".")->built());
  fs::current_path(before);
  EXPECT_TRUE(open(corpus.folder / "a.txt")->built());
}

TEST(TokenStore, HashIsOfTheWholeDocument) {
  const Corpus corpus;
  const std::string tail(600'001, 't');
  fs::remove(corpus.folder / "b.jsonl");
  fs::remove(corpus.folder / "c.gz");
  write_atomic(corpus.folder / "a.txt", "one" + tail);
  write_atomic(corpus.folder / "b.txt", "two" + tail);
  write_atomic(corpus.folder / "c.txt", "one" + tail);
  const auto store = corpus.open();
  EXPECT_NE(store->hash(0), store->hash(1));
  EXPECT_EQ(store->hash(0), store->hash(2));
}

}  // namespace
}  // namespace lineal
