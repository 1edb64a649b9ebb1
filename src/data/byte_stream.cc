#include "data/byte_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "core/error.h"

namespace lineal {
namespace {

class FileBytes : public ByteStream {
 public:
  explicit FileBytes(const std::string& path)
      : path_(path == "-" ? "standard input" : path),
        fd_(path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) refuse();
  }
  ~FileBytes() override {
    if (fd_ != STDIN_FILENO) ::close(fd_);
  }

  size_t read(char* to, size_t size) override {
    size_t done = 0;
    while (done < size) {
      const ssize_t count = ::read(fd_, to + done, size - done);
      if (count == 0) break;
      if (count > 0) {
        done += static_cast<size_t>(count);
      } else if (errno != EINTR) {
        refuse();
      }
    }
    bytes_read_ += static_cast<int64_t>(done);
    return done;
  }

  int64_t bytes_read() const override { return bytes_read_; }

 private:
  [[noreturn]] void refuse() const { fail("cannot read ", path_, ": ", reason(errno)); }

  std::string path_;
  int fd_;
  int64_t bytes_read_ = 0;
};

}  // namespace

std::unique_ptr<ByteStream> open_bytes(const std::string& path) { return std::make_unique<FileBytes>(path); }

}  // namespace lineal
