// Where text comes from: files, folders, gzip, JSON lines and standard input, read as a stream of documents.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lineal {

/// How bytes hold documents: text is one, FASTA has one per record; an idx file of images one per image, other bytes
/// are one.
enum class Format { text, fasta, images };

/// One file of text. Its name tells what it holds: x.jsonl has one document per line, x.fasta, x.fa and x.faa one per
/// record, x.gz is compressed (x.jsonl.gz is both); anything else has the format that the tokenizer reads.
struct Source {
  std::string path;  // "-" is standard input
  bool gzip = false;
  bool json_lines = false;
  Format format = Format::text;
  bool regular = true;      // a file whose size and time tell whether it changed; false for pipes and standard input
  int64_t size = 0;         // bytes in the file
  int64_t modified_ns = 0;  // since some fixed time
};

/// The files that `paths` name, in a fixed order: files as given; folders recursively, sorted by the bytes of their
/// names, without hidden names, training runs below them, binary files (a NUL in the first 8 KiB; not of images), empty
/// files and whatever is neither file nor folder; a file or folder that links reach twice is taken once. "-" is
/// standard input. `format` is that of files whose names do not tell. Throws Error for a missing path, a path that is
/// an empty file, a folder without text, and when nothing is given.
std::vector<Source> find_sources(const std::vector<std::string>& paths, Format format = Format::text);

struct TextOptions {
  /// The field of a JSON line that holds its text.
  std::string text_field = "text";
};

/// A piece of a document. A long document comes in pieces of at most 256 KiB that end after a line if they can, else
/// before a space, between two that are no blanks if they can, else between UTF-8 characters; where they end depends on
/// the text alone.
struct TextPiece {
  std::string_view bytes;  // valid until the next call; never empty
  bool starts_document = false;
};

/// Reads the sources one after another in memory that does not grow with them (JSON lines, FASTA: with the longest line
/// or record).
/// Documents without text are passed over.
class TextReader {
 public:
  explicit TextReader(std::vector<Source> sources, TextOptions options = {});
  ~TextReader();
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;

  /// The next piece, or false after the last. Throws Error naming the file (and the line) for what cannot be read:
  /// truncated or corrupt gzip, a line that is not a JSON object with that field, what FastaReader or ImageReader
  /// refuses, no text at all.
  bool next(TextPiece& piece);
  /// Bytes read from the files so far, compressed ones as they are: progress towards the sum of the sources' sizes.
  int64_t bytes_read() const;

 private:
  class Stream;
  std::unique_ptr<Stream> stream_;
};

}  // namespace lineal
