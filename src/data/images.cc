#include "data/images.h"

#include "core/error.h"

namespace lineal {
namespace {

constexpr size_t kMagic = 4;
constexpr int kUnsignedByte = 8, kMostSizes = 4;
constexpr int64_t kLargest = int64_t{1} << 30;

}  // namespace

void ImageReader::begin() {
  begun_ = true;
  start_.resize(kMagic);
  start_.resize(bytes_.read(start_.data(), kMagic));
  const auto byte = [](const std::string& bytes, size_t i) { return static_cast<unsigned char>(bytes[i]); };
  idx_ = start_.size() == kMagic && byte(start_, 0) == 0 && byte(start_, 1) == 0 && byte(start_, 2) >= kUnsignedByte &&
         byte(start_, 2) <= 14 && byte(start_, 3) >= 1 && byte(start_, 3) <= kMostSizes;
  if (!idx_) return;
  if (byte(start_, 2) != kUnsignedByte) {
    fail(name_, ": idx of type ", static_cast<int>(byte(start_, 2)), ", expected images of unsigned bytes (8)");
  }
  const size_t sizes = byte(start_, 3);
  if (sizes == 1) fail(name_, ": idx of one size holds labels, expected images");
  std::string header(4 * sizes, '\0');
  if (bytes_.read(header.data(), header.size()) < header.size()) fail(name_, ": the file ends within its idx header");
  size_ = 1;
  for (size_t i = 0; i < sizes; ++i) {
    int64_t size = 0;
    for (size_t j = 0; j < 4; ++j) size = size << 8 | byte(header, 4 * i + j);
    if (i == 0) {
      count_ = size;
    } else if (size == 0 || size_ > kLargest / size) {
      fail(name_, ": idx images of size ", size, " in dimension ", i,
           ", expected at least a byte and at most 1 GiB each");
    } else {
      size_ *= size;
    }
  }
}

bool ImageReader::next(std::string& image) {
  if (!begun_) begin();
  if (done_ == count_) {
    char more;
    if (idx_ && bytes_.read(&more, 1) > 0) fail(name_, ": more bytes than its ", count_, " images of ", size_, " have");
    return false;
  }
  ++done_;
  if (idx_) {
    image.resize(static_cast<size_t>(size_));
    const size_t found = bytes_.read(image.data(), image.size());
    if (found < image.size()) {
      fail(name_, ": image ", done_, " of ", count_, " has ", found, " of ", size_, " bytes; is the file complete?");
    }
    return true;
  }
  constexpr size_t kBlock = 1 << 16;
  image = start_;
  for (size_t found = kBlock; found == kBlock;) {
    const size_t before = image.size();
    image.resize(before + kBlock);
    found = bytes_.read(image.data() + before, kBlock);
    image.resize(before + found);
    if (static_cast<int64_t>(image.size()) > kLargest) fail(name_, ": the image is larger than 1 GiB");
  }
  return !image.empty();
}

}  // namespace lineal
