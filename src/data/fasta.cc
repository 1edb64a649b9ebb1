#include "data/fasta.h"

#include <algorithm>
#include <cstdio>

#include "core/error.h"

namespace lineal {
namespace {

constexpr size_t kTextBlock = 1 << 16;
constexpr size_t kLongest = size_t{1} << 30;
constexpr size_t kShown = 60;

bool is_blank(const std::string& line) { return line.find_first_not_of(" \t") == line.npos; }

std::string quoted(char letter) {
  char shown[8];
  const auto code = static_cast<unsigned char>(letter);
  std::snprintf(shown, sizeof shown, code > 32 && code < 127 ? "'%c'" : "0x%02X", code);
  return shown;
}

/// The first word of a header, as one line.
std::string record_name(const std::string& header) {
  std::string name = header.substr(1, header.find_first_of(" \t", 1) - 1).substr(0, kShown);
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return c < 32 || c > 126; }, '?');
  return name;
}

}  // namespace

FastaReader::FastaReader(ByteStream& bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}

bool FastaReader::next(std::string& sequence) {
  while (!in_record_) {
    if (!read_line()) return false;
    if (line_.starts_with('>')) {
      in_record_ = true;
    } else if (!is_blank(line_) && !line_.starts_with(';')) {
      refuse(number_, "it begins with " + quoted(line_.front()) + ", expected '>' and the name of a sequence (FASTA)");
    }
  }
  record_ = record_name(line_);
  record_number_ = number_;
  stop_line_ = 0;
  in_record_ = false;
  sequence.clear();
  while (!in_record_ && read_line()) {
    in_record_ = line_.starts_with('>');
    if (!in_record_ && !line_.starts_with(';')) add_line(sequence);
  }
  if (sequence.empty()) {
    refuse(record_number_,
           "record '" + record_ + "' has no sequence, expected letters after its header; is the file complete?");
  }
  return true;
}

void FastaReader::add_line(std::string& sequence) {
  for (size_t column = 1; column <= line_.size(); ++column) {
    const char c = line_[column - 1];
    if (c == ' ' || c == '\t' || c == '-' || c == '.') continue;
    if (c == '*') {
      if (stop_line_ == 0) stop_line_ = number_, stop_column_ = column;
      continue;
    }
    const char letter = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
    if (letter < 'A' || letter > 'Z') {
      refuse(number_, text("column ", column, ": ", quoted(c), " in record '", record_,
                           "', expected letters, gaps or a stop '*'"));
    }
    if (stop_line_ > 0) {
      refuse(stop_line_, text("column ", stop_column_, ": stop '*' inside record '", record_,
                              "', expected it at the end; make two records of it, or write X for a residue"));
    }
    sequence.push_back(letter);
  }
  if (sequence.size() > kLongest) refuse(number_, text("record '", record_, "' is longer than ", kLongest, " letters"));
}

/// line_ without its end; false after the last.
bool FastaReader::read_line() {
  line_.clear();
  ++number_;
  while (true) {
    const size_t end = block_.find_first_of("\r\n", used_);
    const size_t until = std::min(end, block_.size());
    line_.append(block_, used_, until - used_);
    used_ = until;
    if (end != block_.npos) break;
    if (line_.size() > kLongest) refuse(number_, text("the line is longer than ", kLongest, " bytes"));
    block_.resize(kTextBlock);
    block_.resize(bytes_.read(block_.data(), block_.size()));
    used_ = 0;
    if (block_.empty()) return !line_.empty();
  }
  const bool cr = block_[used_++] == '\r';
  if (cr && used_ == block_.size()) {
    block_.resize(kTextBlock);
    block_.resize(bytes_.read(block_.data(), block_.size()));
    used_ = 0;
  }
  if (cr && used_ < block_.size() && block_[used_] == '\n') ++used_;
  return true;
}

void FastaReader::refuse(int64_t line, const std::string& what) const { fail(name_, ": line ", line, ": ", what); }

}  // namespace lineal
