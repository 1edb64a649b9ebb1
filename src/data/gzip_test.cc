#include <gtest/gtest.h>
#include <sys/resource.h>
#include <zlib.h>

#include "core/file.h"
#include "data/byte_stream.h"
#include "testing/gzip_of.h"
#include "testing/temporary_folder.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

std::string read_gzip(const std::filesystem::path& path, size_t block = 7) {
  const auto bytes = decompress_gzip(open_bytes(path), path);
  std::string all, piece(block, '\0');
  while (true) {
    const size_t count = bytes->read(piece.data(), block);
    all.append(piece, 0, count);
    if (count < block) return all;
  }
}

std::string sample() {
  std::string text;
  for (int i = 0; i < 301; ++i) text += std::to_string(i * 7919 % 1009) + (i % 5 == 0 ? "\n" : " ");
  return text;
}

TEST(Gzip, ReadsWhatZlibWrites) {
  const TemporaryFolder folder;
  write_atomic(folder / "x.gz", gzip_of(sample()));
  for (const size_t block : {1, 7, 4096}) EXPECT_EQ(read_gzip(folder / "x.gz", block), sample());
  write_atomic(folder / "empty.gz", gzip_of(""));
  EXPECT_EQ(read_gzip(folder / "empty.gz"), "");
}

TEST(Gzip, ReadsConcatenatedMembers) {
  const TemporaryFolder folder;
  write_atomic(folder / "x.gz", gzip_of("one ") + gzip_of("") + gzip_of("two") + std::string(513, '\0'));
  EXPECT_EQ(read_gzip(folder / "x.gz"), "one two");
}

TEST(Gzip, EveryTruncationIsAnError) {
  const TemporaryFolder folder;
  const std::string first = gzip_of(sample()), whole = first + gzip_of("second");
  for (size_t size = 0; size < whole.size(); ++size) {
    if (size == first.size()) continue;  // a whole member
    write_atomic(folder / "x.gz", whole.substr(0, size));
    EXPECT_TRUE(throws_error([&] { read_gzip(folder / "x.gz"); }, {(folder / "x.gz").string(), "truncated gzip"}))
        << size;
  }
}

TEST(Gzip, NoFlippedBitGoesUnnoticed) {
  const TemporaryFolder folder;
  const std::string whole = gzip_of(sample());
  for (size_t at = 0; at < whole.size(); ++at) {
    if (at >= 4 && at < 10) continue;  // time, flags and system of the header, which say nothing of the text
    std::string bad = whole;
    bad[at] = static_cast<char>(bad[at] ^ (1 << at % 8));
    write_atomic(folder / "x.gz", bad);
    EXPECT_TRUE(throws_error([&] { read_gzip(folder / "x.gz"); }, {(folder / "x.gz").string(), " gzip"})) << at;
  }
}

TEST(Gzip, RefusesWhatFollowsOrIsNoGzip) {
  const TemporaryFolder folder;
  for (const std::string& bad : {gzip_of("text") + "rest", gzip_of("text") + std::string("\0\0rest", 6),
                                 gzip_of("text") + std::string(2, '\0') + gzip_of("another member"),
                                 std::string("plain text, not compressed")}) {
    write_atomic(folder / "x.gz", bad);
    EXPECT_TRUE(throws_error([&] { read_gzip(folder / "x.gz"); }, {"x.gz: corrupt gzip near byte"}));
  }
}

TEST(Gzip, MemoryDoesNotGrowWithTheText) {
  const TemporaryFolder folder;
  const std::string million(1'000'003, 'a');
  std::string file;
  for (int i = 0; i < 96; ++i) file += gzip_of(million);
  write_atomic(folder / "x.gz", file);
  struct rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  const auto bytes = decompress_gzip(open_bytes(folder / "x.gz"), "x.gz");
  std::string block(4096, '\0');
  size_t total = 0;
  for (size_t count = block.size(); count == block.size(); total += count) {
    count = bytes->read(block.data(), block.size());
  }
  getrusage(RUSAGE_SELF, &after);
  EXPECT_EQ(total, 96 * million.size());
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 4096) << "KiB";
}

}  // namespace
}  // namespace lineal
