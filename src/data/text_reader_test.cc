#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "core/file.h"
#include "data/sources.h"
#include "testing/gzip_of.h"
#include "testing/temporary_folder.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Documents = std::vector<std::string>;
constexpr size_t kPiece = 1 << 18;

struct Read {
  Documents documents;
  std::vector<size_t> pieces;  // sizes
};

Read read_all(const std::vector<std::string>& paths, const TextOptions& options = {}) {
  TextReader reader(find_sources(paths), options);
  Read read;
  for (TextPiece piece; reader.next(piece);) {
    if (piece.starts_document) read.documents.emplace_back();
    read.documents.back() += piece.bytes;
    read.pieces.push_back(piece.bytes.size());
  }
  return read;
}

TEST(TextReader, DocumentsOfEveryFormat) {
  const TemporaryFolder folder;
  const std::string lines =
      "{\"text\": \"first\\n\\u00e9\"}\n \n{\"id\": 3, \"text\": \"second\"}\r\n{\"text\": \"\"}\n"
      "{\"text\": \"last\"}";
  write_atomic(folder / "a.txt", "plain\ntext");
  write_atomic(folder / "b.jsonl", lines);
  write_atomic(folder / "c.jsonl.gz", gzip_of(lines));
  write_atomic(folder / "d.gz", gzip_of("com") + gzip_of("pressed"));
  write_atomic(folder / "e.gz", gzip_of(""));
  write_atomic(folder / "f", std::string("\0\xff", 2));
  const Documents of_lines = {"first\n\xc3\xa9", "second", "last"};
  EXPECT_EQ(read_all({folder / "b.jsonl"}).documents, of_lines);
  Documents expected = {"plain\ntext"};
  for (int i = 0; i < 2; ++i) expected.insert(expected.end(), of_lines.begin(), of_lines.end());
  expected.push_back("compressed");
  expected.push_back(std::string("\0\xff", 2));
  EXPECT_EQ(read_all({folder / "a.txt", folder / "b.jsonl", folder / "c.jsonl.gz", folder / "d.gz", folder / "e.gz",
                      folder / "f"})
                .documents,
            expected);
}

TEST(TextReader, OtherField) {
  const TemporaryFolder folder;
  write_atomic(folder / "x.jsonl", "{\"content\": \"here\", \"text\": \"not\"}\n");
  EXPECT_EQ(read_all({folder / "x.jsonl"}, {.text_field = "content"}).documents, Documents{"here"});
}

TEST(TextReader, PiecesEndWhereTheTextLetsThem) {
  const TemporaryFolder folder;
  const auto pieces = [&](const std::string& text) {
    write_atomic(folder / "x", text);
    const Read read = read_all({folder / "x"});
    EXPECT_EQ(read.documents, Documents{text});
    write_atomic(folder / "x.gz", gzip_of(text));
    EXPECT_EQ(read_all({folder / "x.gz"}).pieces, read.pieces);
    std::string line = "{\"text\": \"";
    for (const char c : text) line += c == '\n' ? "\\n" : std::string(1, c);
    write_atomic(folder / "x.jsonl", line + "\"}");
    EXPECT_EQ(read_all({folder / "x.jsonl"}).pieces, read.pieces);
    return read.pieces;
  };
  using Sizes = std::vector<size_t>;
  const std::string full(kPiece, 'x');
  EXPECT_EQ(pieces(full), Sizes({kPiece}));
  EXPECT_EQ(pieces(full + "y"), Sizes({kPiece, 1}));
  std::string text = full + full;
  text[kPiece - 10] = '\n';
  text[kPiece - 5] = ' ';
  EXPECT_EQ(pieces(text), Sizes({kPiece - 9, kPiece, 9}));
  text[kPiece - 9] = '\n';  // an empty line
  EXPECT_EQ(pieces(text), Sizes({kPiece - 8, kPiece, 8}));
  text[kPiece - 20] = '\n';
  EXPECT_EQ(pieces(text), Sizes({kPiece - 19, kPiece, 19}));
  text[kPiece - 20] = text[kPiece - 10] = text[kPiece - 9] = 'x';
  EXPECT_EQ(pieces(text), Sizes({kPiece - 5, kPiece, 5}));
  text[kPiece - 4] = text[kPiece - 15] = ' ';
  EXPECT_EQ(pieces(text), Sizes({kPiece - 15, kPiece, 15}));
  text[kPiece - 4] = text[kPiece - 15] = 'x';
  text = full + full;
  text[10] = '\n';  // too early: the piece would be short
  text[20] = ' ';
  text.replace(kPiece - 2, 4, "\xf0\x9f\x98\x80");
  EXPECT_EQ(pieces(text), Sizes({kPiece - 2, kPiece, 2}));
}

TEST(TextReader, TextThatIsNotUtf8) {
  const TemporaryFolder folder;
  write_atomic(folder / "x", std::string(kPiece + 3, '\x80'));
  EXPECT_EQ(read_all({folder / "x"}).pieces, std::vector<size_t>({kPiece, 3}));
}

TEST(TextReader, Pipe) {
  const TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  std::string text;
  for (int i = 0; i < 100'003; ++i) text += std::to_string(i) + "\n";
  write_atomic(folder / "file", text);
  std::thread writer([&] { write_atomic(folder / "pipe", text); });  // in pieces of the pipe's size
  const Read read = read_all({folder / "pipe"});
  writer.join();
  EXPECT_EQ(read.documents, Documents{text});
  EXPECT_EQ(read.pieces, read_all({folder / "file"}).pieces);
  EXPECT_GT(read.pieces.size(), 2u);
}

TEST(TextReader, StandardInput) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::write(ends[1], "typed", 5), 5);
  ::close(ends[1]);
  const int saved = ::dup(STDIN_FILENO);
  ::dup2(ends[0], STDIN_FILENO);
  ::close(ends[0]);
  EXPECT_EQ(read_all({"-"}).documents, Documents{"typed"});
  EXPECT_TRUE(throws_error([] { read_all({"-"}); }, {"standard input: no text"}));
  ::dup2(saved, STDIN_FILENO);
  ::close(saved);
}

TEST(TextReader, CountsBytesOfTheFiles) {
  const TemporaryFolder folder;
  const std::string compressed = gzip_of("compressed");
  write_atomic(folder / "a.gz", compressed);
  write_atomic(folder / "b", "plain");
  TextReader reader(find_sources({folder / "a.gz", folder / "b"}));
  EXPECT_EQ(reader.bytes_read(), 0);
  for (TextPiece piece; reader.next(piece);) {
  }
  EXPECT_EQ(reader.bytes_read(), static_cast<int64_t>(compressed.size() + 5));
}

TEST(TextReader, BadLines) {
  const TemporaryFolder folder;
  const std::string path = (folder / "x.jsonl").string();
  const auto refuses = [&](const std::string& line, const std::string& part) {
    write_atomic(path, "{\"text\": \"good\"}\n\n" + line + "\n{\"text\": \"good\"}\n");
    return throws_error([&] { read_all({path}); }, {path + ": line 3: ", part});
  };
  EXPECT_TRUE(refuses("plain text", "it is not JSON"));
  EXPECT_TRUE(refuses("{\"text\": \"cut", "it is not JSON"));
  EXPECT_TRUE(refuses("{\"text\": \"\xff\"}", "it is not JSON"));
  EXPECT_TRUE(refuses(std::string(200'000, '['), "it is not JSON"));
  EXPECT_TRUE(refuses("[1]", "it is array, expected an object"));
  EXPECT_TRUE(refuses("{\"text\": 7}", "field 'text' is number, expected a string"));
  EXPECT_TRUE(
      refuses("{\"body\": \"x\", \"a\\nb\": 1}", "no field 'text' (it has: a?b, body); name one with --text-field"));
  EXPECT_TRUE(refuses("{}", "(it has: none)"));
  std::string many = "{\"first\": 1";
  for (int i = 0; i < 1000; ++i) many += ", \"field" + std::to_string(i) + "\": 1";
  EXPECT_TRUE(refuses(many + "}", ", ...)"));
}

TEST(TextReader, BadFiles) {
  const TemporaryFolder folder;
  const std::string compressed = gzip_of("{\"text\": \"good\"}\n");
  write_atomic(folder / "x.jsonl.gz", compressed.substr(0, compressed.size() - 3));
  EXPECT_TRUE(throws_error([&] { read_all({folder / "x.jsonl.gz"}); }, {"x.jsonl.gz: truncated gzip"}));
  write_atomic(folder / "empty.gz", gzip_of(""));
  EXPECT_TRUE(throws_error([&] { read_all({folder / "empty.gz"}); }, {"empty.gz: no text in it"}));
  write_atomic(folder / "blank.jsonl", "\n \n");
  EXPECT_TRUE(throws_error(
      [&] {
        read_all({folder / "blank.jsonl", folder / "empty.gz"});
      },
      {"blank.jsonl: no text in it and 1 other"}));
  const auto sources = find_sources({folder / "empty.gz"});
  std::filesystem::remove(folder / "empty.gz");
  EXPECT_TRUE(throws_error(
      [&] {
        TextReader reader(sources);
        TextPiece piece;
        reader.next(piece);
      },
      {"empty.gz: No such file"}));
}

TEST(TextReader, MemoryDoesNotGrowWithTheText) {
  const TemporaryFolder folder;
  const std::string million(1'000'003, 'a');
  std::string file;
  for (int i = 0; i < 96; ++i) file += gzip_of(million);
  write_atomic(folder / "x.gz", file);
  struct rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  TextReader reader(find_sources({folder / "x.gz"}));
  size_t total = 0, longest = 0;
  for (TextPiece piece; reader.next(piece);) {
    total += piece.bytes.size();
    longest = std::max(longest, piece.bytes.size());
  }
  getrusage(RUSAGE_SELF, &after);
  EXPECT_EQ(total, 96 * million.size());
  EXPECT_EQ(longest, kPiece);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 4096) << "KiB";
}

TEST(TextReader, LinesAreCountedInEachFile) {
  const TemporaryFolder folder;
  write_atomic(folder / "a.jsonl", "{\"text\": \"good\"}\n{\"text\": \"good\"}\n");
  write_atomic(folder / "b.jsonl", "{\"text\": \"good\"}\nbad\n");
  EXPECT_TRUE(throws_error([&] { read_all({folder / "a.jsonl", folder / "b.jsonl"}); }, {"b.jsonl: line 2: "}));
}

}  // namespace
}  // namespace lineal
