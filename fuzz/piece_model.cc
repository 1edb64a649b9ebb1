// Any bytes as a SentencePiece model: none, or one that then encodes.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "data/pieces.h"

extern "C" lineal::PieceModel* lineal_open_piece_model(const std::string& bytes);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::unique_ptr<lineal::PieceModel> model(lineal_open_piece_model({reinterpret_cast<const char*>(data), size}));
  if (!model) return 0;
  std::vector<int> ids;
  model->encode("The sea  1859\n caf\xc3\xa9 \xe2\x96\x81 \xff a", ids);
  for (const int id : ids) {
    model->kind(id);
    model->piece(id);
  }
  model->find("<mask>");
  model->pad();
  return 0;
}
