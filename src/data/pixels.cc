// Pixels: a byte of an image is a token, an image a document.             (Image Transformer, 2018; Performer, 2021)
//   0 to 255    values, in the file's order: rows, columns, channels
//   256 to 258  begin, from which the first pixel is predicted; mask; pad
#include "core/error.h"
#include "data/tokenizer.h"

namespace lineal {
namespace {

constexpr int64_t kBegin = 256, kMask = 257, kPad = 258;

class Pixels : public Tokenizer {
 public:
  int64_t vocab_size() const override { return kPad + 1; }
  SpecialTokens special() const override { return {.begin = kBegin, .mask = kMask, .pad = kPad}; }
  Format format() const override { return Format::images; }
  Metric metric() const override { return Metric::bits_per_dimension; }

  std::vector<int64_t> encode(std::string_view bytes) const override {
    std::vector<int64_t> ids;
    ids.reserve(bytes.size());
    for (const char c : bytes) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string bytes;
    for (const int64_t id : ids) {
      if (id < 0 || id > kPad) fail("pixels: token id ", id, " is out of range, expected 0 to ", kPad);
      if (id < kBegin) bytes.push_back(static_cast<char>(id));
    }
    return bytes;
  }
};

}  // namespace

extern const TokenizerSpec pixels_spec;
const TokenizerSpec pixels_spec = {
    .name = "pixels",
    .help = "a byte of an image is a token; reads idx files and raw bytes",
    .from_file = [](const std::filesystem::path&) -> std::shared_ptr<Tokenizer> { return std::make_shared<Pixels>(); },
};

}  // namespace lineal
