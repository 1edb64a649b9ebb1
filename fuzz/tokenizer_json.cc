// Any bytes as a tokenizer.json: an Error or a tokenizer, which then encodes and decodes.
#include <cstddef>
#include <cstdint>

#include "core/error.h"
#include "data/bpe_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text =
      "The sea, <s> it's 1859 \r\n  caf\xc3\xa9 e\xcc\x81 \xe2\x96\x81 \xff\xe2\x82 "
      "\xf0\x9f\x91\xa9\xe2\x80\x8d<|endoftext|> a";
  try {
    const auto parts = lineal::read_tokenizer_json({reinterpret_cast<const char*>(data), size}, "input");
    const auto tokenizer = lineal::make_bpe_tokenizer(parts, {}, {}, "input");
    for (const int64_t id : tokenizer->encode(text)) tokenizer->decode({id});
  } catch (const lineal::Error&) {
  }
  return 0;
}
