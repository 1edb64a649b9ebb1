// Files: whole reads, maps, and writes that are there completely or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace lineal {

/// A private memory map of a whole file: writing to it reaches only this process. Throws Error naming the path and the
/// reason.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  char* data() { return data_; }
  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view bytes() const { return {data_, size_}; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

/// The whole file, pipes and devices too; throws Error naming the path and the reason.
std::string read_file(const std::filesystem::path& path);

/// Where write_atomic's caller puts bytes; both throw Error (no space left, ...) naming the path.
class FileWriter {
 public:
  virtual ~FileWriter() = default;
  virtual void write(const void* bytes, size_t size) = 0;
  /// Overwrites bytes written before; for a header whose content is known only at the end.
  virtual void write_at(size_t offset, const void* bytes, size_t size) = 0;
};

/// Writes all bytes to a descriptor; throws Error naming `path` and the reason.
void write_all(int fd, std::string_view bytes, const std::filesystem::path& path);

/// Writes to a temporary file beside `path`, fsyncs it, renames it over `path`, fsyncs the folder. On any error, of
/// `content` too, the temporary is removed and `path` is as it was. A link is followed and an existing file keeps its
/// permissions; devices and pipes, which cannot be replaced, are written to directly.
void write_atomic(const std::filesystem::path& path, const std::function<void(FileWriter&)>& content);
void write_atomic(const std::filesystem::path& path, std::string_view content);

/// Removes from the folder what killed calls of write_atomic left: temporaries that no process holds and that are a
/// minute old.
void remove_stale_temporaries(const std::filesystem::path& folder);

}  // namespace lineal
