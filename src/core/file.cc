#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

std::string reason(int error) { return std::generic_category().message(error); }

/// Closes the descriptor it holds.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return fd_; }
  /// close() can be the first to report that written bytes were lost.
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

struct stat status_of(int fd, const fs::path& path) {
  struct stat status;
  if (::fstat(fd, &status) != 0) fail("cannot read ", path.string(), ": ", reason(errno));
  if (S_ISDIR(status.st_mode)) fail("cannot read ", path.string(), ": it is a folder, expected a file");
  return status;
}

class DescriptorWriter : public FileWriter {
 public:
  DescriptorWriter(int fd, const fs::path& path) : fd_(fd), path_(path) {}

  void write(const void* bytes, size_t size) override {
    write_all(bytes, size, [this](const char* from, size_t count, size_t) { return ::write(fd_, from, count); });
  }

  void write_at(size_t offset, const void* bytes, size_t size) override {
    write_all(bytes, size, [this, offset](const char* from, size_t count, size_t done) {
      return ::pwrite(fd_, from, count, static_cast<off_t>(offset + done));
    });
  }

 private:
  template <class Write>
  void write_all(const void* bytes, size_t size, const Write& write_some) {
    const char* from = static_cast<const char*>(bytes);
    for (size_t done = 0; done < size;) {
      const ssize_t count = write_some(from + done, size - done, done);
      if (count >= 0) {
        done += static_cast<size_t>(count);
      } else if (errno != EINTR) {
        fail("cannot write ", path_.string(), ": ", reason(errno));
      }
    }
  }

  int fd_;
  fs::path path_;
};

/// Removes the file at its end unless released.
struct Temporary {
  fs::path path;
  ~Temporary() {
    if (!path.empty()) ::unlink(path.c_str());
  }
};

void write_directly(const fs::path& path, const std::function<void(FileWriter&)>& content) {
  Descriptor fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (fd < 0) fail("cannot write ", path.string(), ": ", reason(errno));
  DescriptorWriter writer(fd, path);
  content(writer);
  if (fd.close() != 0) fail("cannot write ", path.string(), ": ", reason(errno));
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) fail("cannot read ", path.string(), ": ", reason(errno));
  const struct stat status = status_of(fd, path);
  if (!S_ISREG(status.st_mode)) fail("cannot map ", path.string(), ": expected a regular file, not a pipe or device");
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;
  // Without MAP_NORESERVE Linux refuses private writable maps larger than memory and swap.
  void* at = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) fail("cannot map ", path.string(), " (", size_, " bytes): ", reason(errno));
  data_ = static_cast<char*>(at);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

std::string read_file(const fs::path& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd < 0) fail("cannot read ", path.string(), ": ", reason(errno));
  const struct stat status = status_of(fd, path);
  std::string bytes;
  bytes.reserve(S_ISREG(status.st_mode) ? static_cast<size_t>(status.st_size) : 0);
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = ::read(fd, buffer, sizeof buffer);
    if (count == 0) return bytes;
    if (count > 0) {
      bytes.append(buffer, static_cast<size_t>(count));
    } else if (errno != EINTR) {
      fail("cannot read ", path.string(), ": ", reason(errno));
    }
  }
}

void write_atomic(const fs::path& path, const std::function<void(FileWriter&)>& content) {
  std::error_code ignored;
  const fs::path target = fs::is_symlink(path, ignored) ? fs::weakly_canonical(path, ignored) : path;
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  struct stat old;
  const bool exists = ::stat(target.c_str(), &old) == 0;
  if (exists && S_ISDIR(old.st_mode)) fail("cannot write ", path.string(), ": it is a folder, expected a file name");
  if (exists && !S_ISREG(old.st_mode)) return write_directly(target, content);
  if (exists && ::access(target.c_str(), W_OK) != 0) fail("cannot write ", path.string(), ": ", reason(errno));
  if (!fs::exists(folder, ignored)) {
    fail("cannot write ", path.string(), ": folder ", folder.string(), " does not exist; create it first");
  }

  static std::atomic<uint64_t> count{0};
  // A short name of its own: the target's may already be as long as the filesystem allows.
  Temporary temporary{folder / text(".lineal-", ::getpid(), "-", count++, ".tmp")};
  Descriptor fd(::open(temporary.path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (fd < 0) {
    const int error = errno;
    temporary.path.clear();
    fail("cannot write ", path.string(), ": folder ", folder.string(), ": ", reason(error));
  }
  if (exists) (void)!::fchmod(fd, old.st_mode & 07777);
  DescriptorWriter writer(fd, path);
  content(writer);
  if (::fsync(fd) != 0 || fd.close() != 0) fail("cannot write ", path.string(), ": ", reason(errno));
  if (::rename(temporary.path.c_str(), target.c_str()) != 0) {
    fail("cannot write ", path.string(), ": ", reason(errno));
  }
  temporary.path.clear();
  // From here on the file is complete; some filesystems cannot fsync a folder.
  const Descriptor folder_fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder_fd >= 0) (void)!::fsync(folder_fd);
}

void write_atomic(const fs::path& path, std::string_view content) {
  write_atomic(path, [&](FileWriter& writer) { writer.write(content.data(), content.size()); });
}

}  // namespace lineal
