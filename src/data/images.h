// Images as bytes: the idx files of MNIST, or one image as it is.
//   idx   0, 0, 8 (bytes), number of sizes; the sizes, 32 bits each, big endian: images, rows, columns[, channels];
//   bytes
#pragma once

#include <cstdint>
#include <string>

#include "data/byte_stream.h"

namespace lineal {

/// The images of a file, one after another. What does not begin like an idx file is one image.
class ImageReader {
 public:
  /// `name` is the file for errors; `bytes` lives as long as this.
  ImageReader(ByteStream& bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}

  /// The bytes of the next image, or false after the last. Throws Error naming the file for an idx file of other
  /// numbers or of labels, and for one with fewer or more bytes than its sizes say.
  bool next(std::string& image);

 private:
  void begin();

  ByteStream& bytes_;
  std::string name_, start_;  // what was read to see whether the file is idx
  bool begun_ = false, idx_ = false;
  int64_t count_ = 1, size_ = 0, done_ = 0;
};

}  // namespace lineal
