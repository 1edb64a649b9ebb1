#include "core/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/memory.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

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

/// Calls write_some(bytes not yet written, how many were) until all are written.
template <class WriteSome>
void write_repeatedly(std::string_view bytes, const fs::path& path, const WriteSome& write_some) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t count = write_some(bytes.substr(done), done);
    if (count >= 0) {
      done += static_cast<size_t>(count);
    } else if (errno != EINTR) {
      fail("cannot write ", path.string(), ": ", reason(errno));
    }
  }
}

class DescriptorWriter : public FileWriter {
 public:
  DescriptorWriter(int fd, const fs::path& path) : fd_(fd), path_(path) {}

  void write(const void* bytes, size_t size) override {
    write_all(fd_, {static_cast<const char*>(bytes), size}, path_);
  }

  void write_at(size_t offset, const void* bytes, size_t size) override {
    write_repeatedly({static_cast<const char*>(bytes), size}, path_, [&](std::string_view rest, size_t done) {
      return ::pwrite(fd_, rest.data(), rest.size(), static_cast<off_t>(offset + done));
    });
  }

 private:
  int fd_;
  fs::path path_;
};

/// The temporary file of one write_atomic, locked so that others see it in use; closed and, unless released, removed at
/// its end.
class Temporary {
 public:
  Temporary(const fs::path& folder, const fs::path& target) {
    static std::atomic<uint64_t> count{0};
    do {
      // A short name of its own: the target's may already be as long as the filesystem allows. One that is taken was
      // left by a killed process of the same number.
      path_ = folder / text(kPrefix, ::getpid(), "-", count++, kSuffix);
      fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (fd_ < 0 && errno == EEXIST);
    if (fd_ < 0) fail("cannot write ", target.string(), ": folder ", folder.string(), ": ", reason(errno));
    (void)::flock(fd_, LOCK_EX | LOCK_NB);
  }
  ~Temporary() {
    if (!released_) ::unlink(path_.c_str());
    if (fd_ >= 0) ::close(fd_);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  int fd() const { return fd_; }
  const fs::path& path() const { return path_; }
  /// close() can be the first to report that written bytes were lost.
  int close() { return ::close(std::exchange(fd_, -1)); }
  void release() { released_ = true; }

  static bool is_one(const std::string& name) { return name.starts_with(kPrefix) && name.ends_with(kSuffix); }

 private:
  static constexpr const char* kPrefix = ".lineal-";
  static constexpr const char* kSuffix = ".tmp";
  fs::path path_;
  int fd_ = -1;
  bool released_ = false;
};

void write_directly(const fs::path& path, const std::function<void(FileWriter&)>& content) {
  Descriptor fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (fd < 0) fail("cannot write ", path.string(), ": ", reason(errno));
  DescriptorWriter writer(fd, path);
  content(writer);
  if (fd.close() != 0) fail("cannot write ", path.string(), ": ", reason(errno));
}

}  // namespace

void write_all(int fd, std::string_view bytes, const fs::path& path) {
  write_repeatedly(bytes, path, [fd](std::string_view rest, size_t) { return ::write(fd, rest.data(), rest.size()); });
}

MappedFile::MappedFile(const fs::path& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) fail("cannot read ", path.string(), ": ", reason(errno));
  const struct stat status = status_of(fd, path);
  if (!S_ISREG(status.st_mode)) fail("cannot map ", path.string(), ": expected a regular file, not a pipe or device");
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;
  widen_memory_limit(static_cast<int64_t>(size_));
  // Without MAP_NORESERVE Linux refuses private writable maps larger than memory and swap.
  void* at = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) {
    const int error = errno;
    widen_memory_limit(-static_cast<int64_t>(size_));
    fail("cannot map ", path.string(), " (", size_, " bytes): ", reason(error));
  }
  data_ = static_cast<char*>(at);
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  ::munmap(data_, size_);
  widen_memory_limit(-static_cast<int64_t>(size_));
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

  Temporary temporary(folder, path);
  if (exists) (void)!::fchmod(temporary.fd(), old.st_mode & 07777);
  DescriptorWriter writer(temporary.fd(), path);
  content(writer);
  if (::fsync(temporary.fd()) != 0 || temporary.close() != 0) {
    fail("cannot write ", path.string(), ": ", reason(errno));
  }
  if (::rename(temporary.path().c_str(), target.c_str()) != 0) {
    fail("cannot write ", path.string(), ": ", reason(errno));
  }
  temporary.release();
  // From here on the file is complete; some filesystems cannot fsync a folder.
  const Descriptor folder_fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder_fd >= 0) (void)!::fsync(folder_fd);
}

void write_atomic(const fs::path& path, std::string_view content) {
  write_atomic(path, [&](FileWriter& writer) { writer.write(content.data(), content.size()); });
}

void remove_stale_temporaries(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (!Temporary::is_one(at->path().filename().string())) continue;
    std::error_code gone;
    // Between making a temporary and locking it there is a moment.
    const auto age = fs::file_time_type::clock::now() - fs::last_write_time(at->path(), gone);
    if (gone || age < std::chrono::minutes(1)) continue;
    const Descriptor fd(::open(at->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) == 0) ::unlink(at->path().c_str());
  }
}

}  // namespace lineal
