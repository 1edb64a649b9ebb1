// FASTA, what biologists keep sequences in: records of a line ">name description" and lines of letters.
#pragma once

#include <cstdint>
#include <string>

#include "data/byte_stream.h"

namespace lineal {

/// The sequences of a file, one after another, in upper case. Lines end with LF, CRLF or CR; blank lines, blanks, lines
/// that begin with ';' (comments) and gaps ('-' and '.') are passed over; a stop '*' at the end is dropped.
class FastaReader {
 public:
  /// `name` is the file for errors; `bytes` lives as long as this.
  FastaReader(ByteStream& bytes, std::string name);

  /// The next sequence, never empty, or false after the last. Throws Error naming file, line and record, and where
  /// there is one column and letter, for text before the first '>', a record without letters (a file that was cut short
  /// ends so), a stop inside a sequence (no one protein has it), and anything that is no letter.
  bool next(std::string& sequence);

 private:
  bool read_line();
  void add_line(std::string& sequence);
  [[noreturn]] void refuse(int64_t line, const std::string& what) const;

  ByteStream& bytes_;
  std::string name_, block_, line_, record_;
  size_t used_ = 0;                         // of block_
  int64_t number_ = 0, record_number_ = 0;  // of line_; of the record's header
  int64_t stop_line_ = 0;                   // where the sequence has stopped; 0: it has not
  size_t stop_column_ = 0;
  bool in_record_ = false;  // line_ is a header that next() has not taken yet
};

}  // namespace lineal
