// SentencePiece: pieces of words, learned from text.                                   (SentencePiece, Kudo 2018)
// Made from a trained FILE.model. A piece that the model calls [MASK] or <mask> is the mask.
#include <dlfcn.h>

#include "core/error.h"
#include "core/file.h"
#include "data/pieces.h"
#include "data/shuffle.h"
#include "data/tokenizer.h"

namespace lineal {
namespace {

constexpr const char* kFile = "tokenizer.model";
constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, what pieces have for a space

class SentencePiece : public Tokenizer {
 public:
  explicit SentencePiece(const std::filesystem::path& path) {
    if (path.empty()) fail("sentencepiece: no model, expected --tokenizer-file FILE.model");
    bytes_ = read_file(path);
    model_.reset(reinterpret_cast<OpenPieceModel>(piece_function(kOpenPieceModel))(bytes_));
    if (!model_) fail(path.string(), ": no SentencePiece model, expected one that spm_train has written");
    for (const char* name : {"[MASK]", "<mask>"}) {
      if (const int id = model_->find(name); id >= 0) special_.mask = id;
    }
    if (model_->pad() >= 0) special_.pad = model_->pad();
  }

  int64_t vocab_size() const override { return model_->size(); }
  SpecialTokens special() const override { return special_; }
  Metric metric() const override { return Metric::word_perplexity; }
  std::string identity() const override { return text(bytes_.size(), '-', hash_bytes(bytes_)); }
  void save(const std::filesystem::path& dir) const override { write_atomic(dir / kFile, bytes_); }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const std::string wrong = model_->encode(text, ids);
    if (!wrong.empty()) fail("sentencepiece: cannot read the text: ", wrong);
    return {ids.begin(), ids.end()};
  }

  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string bytes;
    for (const int64_t wide : ids) {
      if (wide < 0 || wide >= vocab_size()) {
        fail("sentencepiece: token id ", wide, " is out of range, expected 0 to ", vocab_size() - 1);
      }
      const int id = static_cast<int>(wide);
      const auto kind = model_->kind(id);
      if (kind == PieceModel::Kind::control || special_.has(wide)) continue;
      std::string piece = model_->piece(id);
      if (kind == PieceModel::Kind::unknown) {
        bytes += "\xef\xbf\xbd";  // U+FFFD
      } else if (kind == PieceModel::Kind::byte) {
        bytes += static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));  // "<0x0A>"
      } else {
        for (size_t at; (at = piece.find(kSpace)) != piece.npos;) piece.replace(at, kSpace.size(), " ");
        bytes += piece;
      }
    }
    return bytes;
  }

 private:
  std::unique_ptr<PieceModel> model_;
  std::string bytes_;
  SpecialTokens special_;
};

}  // namespace

void* piece_function(const char* name) {
  static void* const library = [] {
#if defined(__SANITIZE_ADDRESS__)
    fail("sentencepiece: AddressSanitizer admits no library with symbols of its own, expected a build without it");
#endif
    void* opened = ::dlopen(kPieceLibrary, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (!opened) fail("sentencepiece: ", ::dlerror(), "; expected it beside the program, or in LD_LIBRARY_PATH");
    return opened;
  }();
  return ::dlsym(library, name);
}

extern const TokenizerSpec sentencepiece_spec;
const TokenizerSpec sentencepiece_spec = {
    .name = "sentencepiece",
    .help = "pieces of words, from --tokenizer-file FILE.model (SentencePiece, 2018)",
    .from_file = [](const std::filesystem::path& file) -> std::shared_ptr<Tokenizer> {
      return std::make_shared<SentencePiece>(file);
    },
    .file = kFile,
};

}  // namespace lineal
