// Bytes: every byte is a token, so any file is text and nothing is unknown.
#include "core/error.h"
#include "data/tokenizer.h"

namespace lineal {
namespace {

class Bytes : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 256; }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string bytes;
    bytes.reserve(ids.size());
    for (const int64_t id : ids) {
      if (id < 0 || id > 255) fail("bytes: token id ", id, " is out of range, expected 0 to 255");
      bytes.push_back(static_cast<char>(id));
    }
    return bytes;
  }
};

}  // namespace

extern const TokenizerSpec bytes_spec;
const TokenizerSpec bytes_spec = {
    .name = "bytes",
    .help = "every byte is a token",
    .from_file = [](const std::filesystem::path&) -> std::shared_ptr<Tokenizer> { return std::make_shared<Bytes>(); },
};

}  // namespace lineal
