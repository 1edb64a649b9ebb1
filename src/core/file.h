// Files: whole reads, maps, and writes that are there completely or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace lineal {

/// A read-only memory map of a whole file; throws Error naming the path and the reason.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view bytes() const { return {data_, size_}; }

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
};

/// The whole file; throws Error naming the path and the reason.
std::string read_file(const std::filesystem::path& path);

/// Where write_atomic's caller puts bytes; write throws Error (no space left, ...) naming the path.
class FileWriter {
 public:
  virtual ~FileWriter() = default;
  virtual void write(const void* bytes, size_t size) = 0;
};

/// Writes to a temporary file beside `path`, fsyncs it, renames it over `path`, fsyncs the folder. On any error the
/// temporary is removed and `path` is as it was.
void write_atomic(const std::filesystem::path& path, const std::function<void(FileWriter&)>& content);
void write_atomic(const std::filesystem::path& path, std::string_view content);

}  // namespace lineal
