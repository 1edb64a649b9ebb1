#include <zlib.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "core/error.h"
#include "data/byte_stream.h"

namespace lineal {
namespace {

constexpr size_t kGzipBlock = 1 << 16;
constexpr int kGzipOnly = 16;  // added to the window bits

class GzipBytes : public ByteStream {
 public:
  GzipBytes(std::unique_ptr<ByteStream> file, const std::string& name)
      : file_(std::move(file)), name_(name), block_(kGzipBlock) {
    if (inflateInit2(&zlib_, MAX_WBITS + kGzipOnly) != Z_OK) fail(name_, ": zlib: out of memory");
  }
  ~GzipBytes() override { inflateEnd(&zlib_); }

  size_t read(char* to, size_t size) override {
    size_t done = 0;
    while (done < size && begin_member()) {
      const size_t space = std::min<size_t>(size - done, std::numeric_limits<uInt>::max());
      zlib_.next_out = reinterpret_cast<Bytef*>(to + done);
      zlib_.avail_out = static_cast<uInt>(space);
      const int status = inflate(&zlib_, Z_NO_FLUSH);
      done += space - zlib_.avail_out;
      if (status == Z_STREAM_END) {
        in_member_ = false;
      } else if (status != Z_OK && status != Z_BUF_ERROR) {
        fail(name_, ": corrupt gzip near byte ", position(), ": ", zlib_.msg != nullptr ? zlib_.msg : "cannot inflate");
      } else if (zlib_.avail_out != 0 && !refill()) {
        fail(name_, ": truncated gzip: the file ends at byte ", position(), " in the middle; copy it again");
      }
    }
    return done;
  }

  int64_t bytes_read() const override { return file_->bytes_read(); }

 private:
  int64_t position() const { return file_->bytes_read() - static_cast<int64_t>(zlib_.avail_in); }

  /// Makes sure that there is input; false at the end of the file.
  bool refill() {
    if (zlib_.avail_in == 0) {
      zlib_.next_in = block_.data();
      zlib_.avail_in = static_cast<uInt>(file_->read(reinterpret_cast<char*>(block_.data()), block_.size()));
    }
    return zlib_.avail_in != 0;
  }

  /// Inside a member, or at the start of the next; false when the file has no other.
  bool begin_member() {
    if (in_member_) return true;
    if (!first_) {
      while (refill() && *zlib_.next_in == 0) ++zlib_.next_in, --zlib_.avail_in, padded_ = true;
      if (zlib_.avail_in == 0) return false;
      if (padded_) fail(name_, ": corrupt gzip near byte ", position(), ": bytes after the zeros that end it");
    } else if (!refill()) {
      fail(name_, ": truncated gzip: the file is empty");
    }
    inflateReset(&zlib_);
    first_ = false;
    return in_member_ = true;
  }

  std::unique_ptr<ByteStream> file_;
  std::string name_;
  std::vector<Bytef> block_;
  z_stream zlib_ = {};
  bool first_ = true;
  bool in_member_ = false;
  bool padded_ = false;
};

}  // namespace

std::unique_ptr<ByteStream> decompress_gzip(std::unique_ptr<ByteStream> file, const std::string& name) {
  return std::make_unique<GzipBytes>(std::move(file), name);
}

}  // namespace lineal
