// Bytes of a file from its first to its last, decompressed if it is gzip.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace lineal {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  /// Fills `to`; fewer than `size` bytes mean that the stream has ended. Throws Error naming the file.
  virtual size_t read(char* to, size_t size) = 0;
  /// Bytes taken from the file so far, before decompression.
  virtual int64_t bytes_read() const = 0;
};

/// The bytes of a file, pipe or device; "-" is standard input. Throws Error naming the path and the reason.
std::unique_ptr<ByteStream> open_bytes(const std::string& path);

/// The text of a gzip file: one member or several, zeros allowed after the last. `name` is the file for errors: a
/// truncated or corrupt file is an Error as soon as reading comes to it.
std::unique_ptr<ByteStream> decompress_gzip(std::unique_ptr<ByteStream> file, const std::string& name);

}  // namespace lineal
