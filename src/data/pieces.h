// A SentencePiece model behind a library of its own, opened when one is read: the public library and LibTorch's both
// export FLAGS_minloglevel, of different sizes, and in one program the larger overwrites what lies behind the smaller.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lineal {

class PieceModel {
 public:
  virtual ~PieceModel() = default;
  /// Pieces; ids run from 0.
  virtual int size() const = 0;
  /// -1: none.
  virtual int pad() const = 0;
  /// The id of a piece of that name, or -1.
  virtual int find(const std::string& piece) const = 0;
  enum class Kind { normal, unknown, control, byte };
  virtual Kind kind(int id) const = 0;
  virtual std::string piece(int id) const = 0;
  /// "", or what is wrong with the text.
  virtual std::string encode(std::string_view text, std::vector<int>& ids) const = 0;
};

/// Null unless these are the bytes of a model; the caller deletes it.
using OpenPieceModel = PieceModel* (*)(const std::string& bytes);
/// Learns a model's bytes from lines of text, which `next` gives until it returns false. Options are those of
/// spm_train. Returns "", or what is wrong.
using TrainPieceModel = std::string (*)(const std::unordered_map<std::string, std::string>& options,
                                        const std::function<bool(std::string& line)>& next, std::string& bytes);
constexpr const char* kPieceLibrary = "liblineal_pieces.so";
constexpr const char* kOpenPieceModel = "lineal_open_piece_model";
constexpr const char* kTrainPieceModel = "lineal_train_piece_model";

/// A function of that library; throws Error where it cannot be opened.
void* piece_function(const char* name);

}  // namespace lineal
