#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <memory>

#include "data/pieces.h"

namespace lineal {
namespace {

class Model : public PieceModel {
 public:
  bool load(const std::string& bytes) { return processor_.LoadFromSerializedProto(bytes).ok(); }

  int size() const override { return processor_.GetPieceSize(); }
  int pad() const override { return processor_.pad_id(); }
  int find(const std::string& piece) const override {
    const int id = processor_.PieceToId(piece);
    return processor_.IsUnknown(id) ? -1 : id;
  }
  Kind kind(int id) const override {
    if (processor_.IsControl(id)) return Kind::control;
    if (processor_.IsUnknown(id)) return Kind::unknown;
    return processor_.IsByte(id) ? Kind::byte : Kind::normal;
  }
  std::string piece(int id) const override { return processor_.IdToPiece(id); }
  std::string encode(std::string_view text, std::vector<int>& ids) const override {
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    return status.ok() ? "" : status.message();
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::function<bool(std::string&)>& next) : next_(next) { Next(); }
  bool done() const override { return done_; }
  void Next() override { done_ = !next_(line_); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::function<bool(std::string&)>& next_;
  std::string line_;
  bool done_ = false;
};

}  // namespace
}  // namespace lineal

extern "C" lineal::PieceModel* lineal_open_piece_model(const std::string& bytes) {
  auto model = std::make_unique<lineal::Model>();
  return model->load(bytes) ? model.release() : nullptr;
}

extern "C" std::string lineal_train_piece_model(const std::unordered_map<std::string, std::string>& options,
                                                const std::function<bool(std::string&)>& next, std::string& bytes) {
  lineal::Lines lines(next);
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &lines, &bytes);
  return status.ok() ? "" : status.message();
}
