// SentencePiece: pieces of words, learned from text.                                   (SentencePiece, Kudo 2018)
// Made from a trained FILE.model. A piece that the model calls [MASK] or <mask> is the mask.
#include <sentencepiece_processor.h>

#include "core/error.h"
#include "core/file.h"
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
    const auto status = processor_.LoadFromSerializedProto(bytes_);
    if (!status.ok()) fail(path.string(), ": no SentencePiece model, expected one that spm_train has written");
    for (const char* name : {"[MASK]", "<mask>"}) {
      const int id = processor_.PieceToId(name);
      if (!processor_.IsUnknown(id)) special_.mask = id;
    }
    if (processor_.pad_id() >= 0) special_.pad = processor_.pad_id();
  }

  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  SpecialTokens special() const override { return special_; }
  Measure measure() const override { return Measure::word_perplexity; }
  std::string identity() const override { return text(bytes_.size(), '-', hash_bytes(bytes_)); }
  void save(const std::filesystem::path& dir) const override { write_atomic(dir / kFile, bytes_); }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) fail("sentencepiece: cannot read the text: ", status.message());
    return {ids.begin(), ids.end()};
  }

  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string bytes;
    for (const int64_t wide : ids) {
      if (wide < 0 || wide >= vocab_size()) {
        fail("sentencepiece: token id ", wide, " is out of range, expected 0 to ", vocab_size() - 1);
      }
      const int id = static_cast<int>(wide);
      if (processor_.IsControl(id) || special_.has(wide)) continue;
      if (processor_.IsUnknown(id)) {
        bytes += "\xef\xbf\xbd";  // U+FFFD
      } else if (processor_.IsByte(id)) {
        bytes += static_cast<char>(std::stoi(processor_.IdToPiece(id).substr(3, 2), nullptr, 16));  // "<0x0A>"
      } else {
        std::string piece = processor_.IdToPiece(id);
        for (size_t at; (at = piece.find(kSpace)) != piece.npos;) piece.replace(at, kSpace.size(), " ");
        bytes += piece;
      }
    }
    return bytes;
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
  std::string bytes_;
  SpecialTokens special_;
};

}  // namespace

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
