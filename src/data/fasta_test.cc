#include "data/fasta.h"

#include <gtest/gtest.h>

#include "core/file.h"
#include "core/registry.h"
#include "data/token_store.h"
#include "testing/gzip_of.h"
#include "testing/temporary_folder.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Sequences = std::vector<std::string>;

/// Two proteins by hand: a lower-case one in lines, an aligned one with gaps and its stop.
const std::string kSmall =
    "; a comment\n"
    ">sp|P1|ONE first protein\n"
    "mkv LAtg\n"
    "\n"
    "QWERTY\n"
    ">TWO\n"
    "-MK..DEJ\n"
    "UOBZX*\n";
const Sequences kSmallSequences = {"MKVLATGQWERTY", "MKDEJUOBZX"};

class Bytes : public ByteStream {
 public:
  Bytes(std::string bytes, size_t most) : bytes_(std::move(bytes)), most_(most) {}
  size_t read(char* to, size_t size) override {
    const size_t count = std::min({size, most_, bytes_.size() - used_});
    std::copy_n(bytes_.data() + used_, count, to);
    used_ += count;
    return count;
  }
  int64_t bytes_read() const override { return static_cast<int64_t>(used_); }

 private:
  std::string bytes_;
  size_t most_, used_ = 0;
};

/// `block`: bytes that the file gives at a time.
Sequences read(const std::string& bytes, size_t block = 1 << 20) {
  Bytes file(bytes, block);
  FastaReader reader(file, "some.fasta");
  Sequences all;
  for (std::string sequence; reader.next(sequence);) all.push_back(sequence);
  return all;
}

std::string replaced(std::string bytes, const std::string& what, const std::string& by) {
  for (size_t at = 0; (at = bytes.find(what, at)) != bytes.npos; at += by.size()) bytes.replace(at, what.size(), by);
  return bytes;
}

TEST(Fasta, Records) {
  EXPECT_EQ(read(kSmall), kSmallSequences);
  for (const size_t block : {1, 2, 7}) EXPECT_EQ(read(kSmall, block), kSmallSequences) << block;
  EXPECT_EQ(read(kSmall.substr(0, kSmall.size() - 1)), kSmallSequences) << "no newline at the end";
  EXPECT_EQ(read(""), Sequences());
  EXPECT_EQ(read("\n \n"), Sequences());
  EXPECT_EQ(read(">one\nMK\n>one\nMK\n"), Sequences({"MK", "MK"})) << "the same twice";
}

TEST(Fasta, EndsOfLines) {
  for (const std::string end : {"\r\n", "\r"}) {
    for (const size_t block : {1, 3, 1000})
      EXPECT_EQ(read(replaced(kSmall, "\n", end), block), kSmallSequences) << block;
  }
}

TEST(Fasta, StopsAtTheEnd) {
  EXPECT_EQ(read(">a\nMK*\n\n>b\nVL\n*\n"), Sequences({"MK", "VL"}));
  EXPECT_TRUE(
      throws_error([] { read(">a\nM\n>pseudo gene\nMKV*LA\n"); }, {"some.fasta: line 4: column 4", "'*'", "pseudo"}));
  EXPECT_TRUE(throws_error([] { read(">a\nMK*\nLA\n"); }, {"line 2: column 3", "stop"}));
}

TEST(Fasta, WhatIsNoSequence) {
  EXPECT_TRUE(throws_error([] { read("MKV\n"); }, {"some.fasta: line 1", "'M'", "'>'"}));
  EXPECT_TRUE(throws_error([] { read(">a\nMKV\n\n>last one\n"); }, {"line 4", "'last'", "no sequence"}));
  EXPECT_TRUE(throws_error([] { read(">a\n>b\nMK\n"); }, {"line 1", "'a'", "no sequence"}));
  EXPECT_TRUE(throws_error([] { read(">a\n---\n>b\nMK\n"); }, {"line 1", "'a'", "no sequence"}));
  EXPECT_TRUE(throws_error([] { read(">a\nMK\n>b c\n\nMK\nLA7\n"); }, {"line 6: column 3", "'7'", "record 'b'"}));
  EXPECT_TRUE(throws_error([] { read(">a\nMK\xc3\xa9\n"); }, {"line 2: column 3", "0xC3", "'a'"}));
  EXPECT_TRUE(throws_error([] { read(">a\nMKV>b\nLA\n"); }, {"line 2: column 4", "'>'"}));
  EXPECT_TRUE(throws_error([] { read(">" + std::string(5000, 'n') + "\x01\n7\n"); }, {"line 2: column 1", "nnnn"}));
}

TEST(AminoAcids, OrderOfTheLetters) {
  const auto tokenizer = find<TokenizerSpec>("amino_acids").make();
  std::vector<int64_t> expected;
  for (int64_t i = 0; i < 25; ++i) expected.push_back(i);
  EXPECT_EQ(tokenizer->encode("ACDEFGHIKLMNPQRSTVWYBOUXZ"), expected);
  EXPECT_EQ(tokenizer->encode("acdefghiklmnpqrstvwybouxz"), expected);
  EXPECT_EQ(tokenizer->decode(expected), "ACDEFGHIKLMNPQRSTVWYBOUXZ");
  EXPECT_EQ(tokenizer->encode("JX"), std::vector<int64_t>({23, 23}));
  EXPECT_EQ(tokenizer->vocab_size(), 29);
  const SpecialTokens special = tokenizer->special();
  EXPECT_EQ(std::vector<int64_t>({*special.begin, *special.end, *special.mask, *special.pad}),
            std::vector<int64_t>({25, 26, 27, 28}));
  EXPECT_EQ(tokenizer->decode({25, 10, 27, 8, 26, 28}), "MK");
  EXPECT_TRUE(throws_error([&] { tokenizer->encode("MK1"); }, {"amino_acids", "byte 49", "place 3"}));
  EXPECT_TRUE(throws_error([&] { tokenizer->decode({29}); }, {"29", "0 to 28"}));
}

/// Tokens of all documents, and of each alone.
std::vector<std::vector<int64_t>> stored(const std::vector<std::string>& paths, const std::string& tokenizer) {
  TokenStoreOptions options;
  options.cache_folder.clear();
  const auto store = TokenStore::open(paths, *find<TokenizerSpec>(tokenizer).make(), tokenizer, options);
  std::vector<std::vector<int64_t>> documents;
  for (int64_t i = 0; i < store->documents(); ++i) {
    documents.emplace_back(static_cast<size_t>(store->document(i).size()));
    store->copy(store->document(i), documents.back().data());
  }
  return documents;
}

TEST(AminoAcids, EverySequenceIsADocument) {
  const TemporaryFolder folder;
  write_atomic(folder / "a.faa.gz", gzip_of(">one\nMK\n>two\nAC\n"));
  write_atomic(folder / "b.fasta", ">three\nY\n");
  write_atomic(folder / "c.txt", ">four\nW\n");  // the tokenizer reads nothing else
  EXPECT_EQ(stored({folder.path()}, "amino_acids"),
            (std::vector<std::vector<int64_t>>{{25, 10, 8, 26}, {25, 0, 1, 26}, {25, 19, 26}, {25, 18, 26}}));
  EXPECT_EQ(stored({folder / "a.faa.gz", folder / "c.txt"}, "bytes"),
            (std::vector<std::vector<int64_t>>{{'M', 'K'}, {'A', 'C'}, {'>', 'f', 'o', 'u', 'r', '\n', 'W', '\n'}}));
}

TEST(AminoAcids, BadFilesNameThemselves) {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& name, const std::string& bytes, const std::vector<std::string>& parts) {
    write_atomic(folder / name, bytes);
    return throws_error([&] { stored({folder / name}, "amino_acids"); }, parts);
  };
  EXPECT_TRUE(refused("empty.fa", "", {"empty.fa", "empty"}));
  EXPECT_TRUE(refused("blank.fa", "\n\n", {"blank.fa", "no text"}));
  EXPECT_TRUE(refused("cut.fa.gz", gzip_of(kSmall).substr(0, 60), {"cut.fa.gz"}));
  EXPECT_TRUE(refused("bad.fa", ">x\nM?K\n", {"bad.fa: line 2: column 2", "'?'", "'x'"}));
}

}  // namespace
}  // namespace lineal
