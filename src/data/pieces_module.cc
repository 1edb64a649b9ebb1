#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "data/pieces.h"

namespace lineal {
namespace {

// ---- what the library does not check: it has no exceptions to catch, and trusts the tables that it finds ----------

/// The fields of a protocol buffers message.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : rest_(bytes) {}

  /// False after the last, and where the message is none: then ok() is false too.
  bool next() {
    if (rest_.empty()) return false;
    const uint64_t key = number();
    field = key >> 3;
    bytes = {};
    switch (key & 7) {
      case 0:
        number();
        break;
      case 1:
        take(8);
        break;
      case 2:
        bytes = take(number());
        break;
      case 5:
        take(4);
        break;
      default:
        ok_ = false;
    }
    return ok_;
  }
  bool ok() const { return ok_; }

  uint64_t field = 0;
  std::string_view bytes;  // of a string or message, else empty

 private:
  uint64_t number() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const std::string_view byte = take(1);
      if (byte.empty()) return 0;
      value |= static_cast<uint64_t>(byte[0] & 0x7f) << shift;
      if (!(byte[0] & 0x80)) return value;
    }
    ok_ = false;
    return 0;
  }
  std::string_view take(uint64_t size) {
    if (size > rest_.size()) {
      ok_ = false;
      return rest_ = {};
    }
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view rest_;
  bool ok_ = true;
};

/// Whether `good` holds for the bytes of each such field of a message, and it is one.
template <class Good>
bool all(std::string_view message, std::initializer_list<uint64_t> named, const Good& good) {
  Fields fields(message);
  while (fields.next()) {
    if (std::find(named.begin(), named.end(), fields.field) != named.end() && !good(fields.bytes)) return false;
  }
  return fields.ok();
}

/// A NormalizerSpec's precompiled_charsmap: the size of a trie, the trie, and the strings, each with a zero after it,
/// that it points into. The trie is a double array of Darts-clone: from a unit of index i, the letter c leads to
/// i ^ offset ^ c, and i ^ offset is a leaf, of value the string's place, where the unit has one.
bool is_charsmap(std::string_view map) {
  if (map.empty()) return true;
  uint32_t size = 0;
  if (map.size() < sizeof size) return false;
  std::memcpy(&size, map.data(), sizeof size);
  map.remove_prefix(sizeof size);
  if (size == 0 || size >= map.size() || size % 4 != 0 || map.back() != 0) return false;
  std::vector<uint32_t> units(size / 4);
  std::memcpy(units.data(), map.data(), size);
  const size_t strings = map.size() - size;
  for (size_t i = 0; i < units.size(); ++i) {
    const uint32_t unit = units[i];
    if (unit >> 31) continue;  // a leaf
    const size_t base = i ^ (static_cast<size_t>(unit >> 10) << ((unit & (1 << 9)) >> 6));
    if ((base | 0xff) >= units.size()) return false;
    if ((unit >> 8 & 1) && (units[base] & 0x7fffffff) >= strings) return false;
  }
  return true;
}

/// A ModelProto whose pieces (1: piece) the library can sort into a trie, and whose normalizers (3 and 5: charsmap)
/// point at what they have.
bool is_model_proto(std::string_view bytes) {
  const auto is_piece = [](std::string_view piece) { return piece.find('\0') == piece.npos; };
  return all(bytes, {1}, [&](std::string_view message) { return all(message, {1}, is_piece); }) &&
         all(bytes, {3, 5}, [&](std::string_view message) { return all(message, {2}, is_charsmap); });
}

class Model : public PieceModel {
 public:
  bool load(const std::string& bytes) {
    return is_model_proto(bytes) && processor_.LoadFromSerializedProto(bytes).ok();
  }

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
