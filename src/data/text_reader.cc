#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/byte_stream.h"
#include "data/fasta.h"
#include "data/images.h"
#include "data/sources.h"

namespace lineal {
namespace {

using SortedJson = nlohmann::json;

constexpr size_t kPiece = 1 << 18;
constexpr size_t kLongestLine = size_t{1} << 30;

/// Where to end a piece of `text`, which is longer than kPiece.
size_t cut(std::string_view text) {
  const std::string_view window = text.substr(0, kPiece);
  const auto blank = [&](size_t at) { return text[at] == ' ' || (text[at] >= '\t' && text[at] <= '\r'); };
  // The last `c` in the window's later half; a lone one, between letters, before any other: there every tokenizer of
  // words begins a new one, while runs of blanks are words themselves.
  const auto last = [&](char c) {
    const size_t any = window.rfind(c);
    for (size_t at = any; at != window.npos && at >= kPiece / 2; at = window.rfind(c, at - 1)) {
      if (!blank(at - 1) && !blank(at + 1)) return at;
    }
    return any != window.npos && any >= kPiece / 2 ? any : window.npos;
  };
  if (const size_t line = last('\n'); line != window.npos) return line + 1;
  if (const size_t space = last(' '); space != window.npos) return space;
  const auto continues = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
  for (size_t end = kPiece; end > kPiece - 4; --end) {
    if (!continues(end)) return end;
  }
  return kPiece;  // not UTF-8
}

std::string field_names(const SortedJson& object) {
  std::string names;
  for (const auto& [name, value] : object.items()) {
    names += text(names.empty() ? "" : ", ", name.substr(0, 40));
    if (names.size() > 120) return names + ", ...";
  }
  std::replace_if(
      names.begin(), names.end(), [](unsigned char c) { return c < ' '; }, '?');
  return names.empty() ? "none" : names;
}

}  // namespace

class TextReader::Stream {
 public:
  Stream(std::vector<Source> sources, TextOptions options)
      : sources_(std::move(sources)), options_(std::move(options)) {}

  bool next(TextPiece& piece) {
    while (used_ == text_.size() || (!complete_ && text_.size() - used_ <= kPiece)) {
      if (complete_ ? !begin_document() : !read_more()) return false;
    }
    const std::string_view rest = std::string_view(text_).substr(used_);
    piece.bytes = rest.size() <= kPiece ? rest : rest.substr(0, cut(rest));
    piece.starts_document = starts_;
    used_ += piece.bytes.size();
    starts_ = false;
    found_ = true;
    return true;
  }

  int64_t bytes_read() const { return finished_ + (bytes_ ? bytes_->bytes_read() : 0); }

 private:
  const Source& source() const { return sources_[next_ - 1]; }

  /// Makes text_ the start of another document, perhaps an empty one; false when there is none.
  bool begin_document() {
    starts_ = true;
    return (bytes_ && next_record()) || open_next();
  }

  /// text_ from the next record of a source that has records; false after the last.
  bool next_record() {
    if (source().json_lines) return next_line();
    if (!record_ || !record_(text_)) return false;
    used_ = 0;
    return true;
  }

  bool open_next() {
    if (bytes_) finished_ += bytes_->bytes_read();
    record_ = nullptr;
    bytes_.reset();
    if (next_ == sources_.size()) {
      if (!found_)
        fail(sources_.empty() ? "nothing to read" : name(sources_.front()), ": no text in it",
             sources_.size() > 1 ? text(" and ", sources_.size() - 1, " other sources") : "");
      return false;
    }
    ++next_;
    bytes_ = open_bytes(source().path);
    if (source().gzip) bytes_ = decompress_gzip(std::move(bytes_), source().path);
    line_ = 0;
    raw_.clear();
    raw_used_ = 0;
    text_.clear();
    used_ = 0;
    if (!source().json_lines) record_ = reader_of_records();
    complete_ = source().json_lines || record_;  // of records, begin_document reads the first
    return true;
  }

  /// Reads the next record of a source that has them, false after the last; null for plain text.
  std::function<bool(std::string&)> reader_of_records() {
    const auto reading = [](auto reader) { return [reader](std::string& record) { return reader->next(record); }; };
    if (source().format == Format::fasta) return reading(std::make_shared<FastaReader>(*bytes_, name(source())));
    if (source().format == Format::images) return reading(std::make_shared<ImageReader>(*bytes_, name(source())));
    return nullptr;
  }

  /// More of a plain document: up to one byte past a whole piece, to know whether it is the last.
  bool read_more() {
    text_.erase(0, used_);
    used_ = 0;
    const size_t have = text_.size();
    text_.resize(kPiece + 1);
    const size_t count = bytes_->read(text_.data() + have, text_.size() - have);
    complete_ = have + count < text_.size();
    text_.resize(have + count);
    return true;
  }

  /// text_ from the next line that is not blank; false after the last.
  bool next_line() {
    std::string line;
    while (read_line(line)) {
      if (line.find_first_not_of(" \t\r\n") == line.npos) continue;
      const SortedJson object = SortedJson::parse(line, nullptr, /*allow_exceptions=*/false);
      if (object.is_discarded()) refuse_line("it is not JSON");
      if (!object.is_object()) refuse_line("it is ", object.type_name(), ", expected an object");
      const auto field = object.find(options_.text_field);
      if (field == object.end()) {
        refuse_line("no field '", options_.text_field, "' (it has: ", field_names(object),
                    "); name one with --text-field");
      }
      if (!field->is_string()) {
        refuse_line("field '", options_.text_field, "' is ", field->type_name(), ", expected a string");
      }
      text_ = field->get<std::string>();
      used_ = 0;
      return true;
    }
    return false;
  }

  bool read_line(std::string& line) {
    line.clear();
    ++line_;
    while (true) {
      const size_t end = raw_.find('\n', raw_used_);
      const size_t until = end == raw_.npos ? raw_.size() : end;
      line.append(raw_, raw_used_, until - raw_used_);
      raw_used_ = std::min(until + 1, raw_.size());
      if (end != raw_.npos) return true;
      if (line.size() > kLongestLine) refuse_line("it is longer than ", kLongestLine, " bytes");
      raw_.resize(kPiece);
      raw_.resize(bytes_->read(raw_.data(), raw_.size()));
      raw_used_ = 0;
      if (raw_.empty()) return !line.empty();
    }
  }

  template <class... Parts>
  [[noreturn]] void refuse_line(const Parts&... parts) const {
    fail(source().path, ": line ", line_, ": ", parts...);
  }

  static std::string name(const Source& source) { return source.path == "-" ? "standard input" : source.path; }

  std::vector<Source> sources_;
  TextOptions options_;
  size_t next_ = 0;                    // sources_ before this one are open or done
  std::unique_ptr<ByteStream> bytes_;  // of source()
  std::function<bool(std::string&)> record_;
  std::string raw_;  // of JSON lines: bytes not yet in a line from raw_used_ on
  size_t raw_used_ = 0;
  int64_t line_ = 0;
  std::string text_;  // of the document, not yet given from used_ on
  size_t used_ = 0;
  bool complete_ = true;  // text_ reaches the document's end
  bool starts_ = true;
  bool found_ = false;
  int64_t finished_ = 0;  // bytes of sources before this one
};

TextReader::TextReader(std::vector<Source> sources, TextOptions options)
    : stream_(std::make_unique<Stream>(std::move(sources), std::move(options))) {}
TextReader::~TextReader() = default;
bool TextReader::next(TextPiece& piece) { return stream_->next(piece); }
int64_t TextReader::bytes_read() const { return stream_->bytes_read(); }

}  // namespace lineal
