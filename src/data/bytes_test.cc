#include <gtest/gtest.h>

#include "core/registry.h"
#include "data/tokenizer.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

TEST(Bytes, EveryByteIsItsOwnToken) {
  const auto bytes = find<TokenizerSpec>("bytes").make();
  std::string all;
  for (int i = 0; i < 256; ++i) all.push_back(static_cast<char>(i));
  const auto ids = bytes->encode(all);
  ASSERT_EQ(ids.size(), 256u);
  for (int64_t i = 0; i < 256; ++i) EXPECT_EQ(ids[static_cast<size_t>(i)], i);
  EXPECT_EQ(bytes->decode(ids), all);
  EXPECT_EQ(bytes->vocab_size(), 256);
}

TEST(Bytes, RefusesIdsOutOfRange) {
  const auto bytes = find<TokenizerSpec>("bytes").make();
  EXPECT_TRUE(throws_error([&] { bytes->decode({7, 256}); }, {"token id 256", "0 to 255"}));
  EXPECT_TRUE(throws_error([&] { bytes->decode({7, -1}); }, {"token id -1", "0 to 255"}));
}

}  // namespace
}  // namespace lineal
