#include "core/safetensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "core/error.h"
#include "core/file.h"
#include "testing/temporary_folder.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Names = std::vector<std::string>;

constexpr at::ScalarType kTypes[] = {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong,
                                     at::kInt,    at::kShort, at::kChar, at::kByte,     at::kBool};

Tensor filled(at::IntArrayRef shape, at::ScalarType type) {
  const int64_t count = c10::multiply_integers(shape);
  return (at::arange(count).remainder(7) - (type == at::kByte ? 0 : 3)).to(type).reshape(shape);
}

std::string bytes_of(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

TEST(SafeTensors, RoundTripOfEveryType) {
  const TemporaryFolder folder;
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const auto type : kTypes) {
    const std::string name = c10::toString(type);
    tensors.emplace_back(name, filled({3, 5, 7}, type));
    tensors.emplace_back(name + ".transposed", filled({3, 5}, type).t());
    tensors.emplace_back(name + ".scalar", filled({}, type));
    tensors.emplace_back(name + ".none", at::empty({3, 0, 5}, type));
    tensors.emplace_back(name + ".every second", filled({11}, type).slice(0, 1, 9, 2));
    tensors.emplace_back(name + ".expanded", filled({3, 1}, type).expand({3, 5}));
  }
  tensors.emplace_back("\xc3\xa9 \"\n", filled({3}, at::kFloat));
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"\xc3\xa9\n", "\"\\"}};
  save_safetensors(folder / "x", tensors, metadata);

  const SafeTensors loaded = load_safetensors(folder / "x");
  EXPECT_EQ(loaded.metadata, metadata);
  ASSERT_EQ(loaded.tensors.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = loaded.tensors[i];
    EXPECT_EQ(name, tensors[i].first);
    EXPECT_EQ(tensor.scalar_type(), tensors[i].second.scalar_type()) << name;
    EXPECT_EQ(tensor.sizes(), tensors[i].second.sizes()) << name;
    EXPECT_TRUE(tensor.is_contiguous()) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.itemsize(), 0u) << name;
    EXPECT_TRUE(at::equal(tensor, tensors[i].second)) << name;
  }
  EXPECT_EQ(loaded.find("Float"), &loaded.at("Float", "test"));
  EXPECT_EQ(loaded.find("missing"), nullptr);
  EXPECT_TRUE(throws_error([&] { loaded.at("Floot", "test"); }, {"test: no tensor 'Floot'", "'Float'"}));
}

TEST(SafeTensors, EmptyFileOfTensors) {
  const TemporaryFolder folder;
  save_safetensors(folder / "x", {});
  EXPECT_EQ(read_file(folder / "x"), bytes_of("{}      "));
  EXPECT_TRUE(load_safetensors(folder / "x").tensors.empty());
}

TEST(SafeTensors, BytesAreThoseOfTheFormat) {
  const TemporaryFolder folder;
  save_safetensors(folder / "x", {{"b", at::scalar_tensor(258, at::kInt)}, {"a", at::ones({2}, at::kBool)}},
                   {{"k", "v"}});
  EXPECT_EQ(read_file(folder / "x"),
            bytes_of("{\"__metadata__\":{\"k\":\"v\"},\"b\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]},"
                     "\"a\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[4,6]}}    ",
                     std::string("\x02\x01\0\0\x01\x01", 6)));
}

TEST(SafeTensors, SharesThePrivateMap) {
  const TemporaryFolder folder;
  save_safetensors(folder / "x", {{"a", at::ones({3})}, {"b", at::ones({5})}});
  const std::string before = read_file(folder / "x");
  Tensor a, b;
  {
    const SafeTensors loaded = load_safetensors(folder / "x");
    a = loaded.at("a", "test");
    b = loaded.at("b", "test");
  }
  EXPECT_EQ(static_cast<const char*>(b.const_data_ptr()) - static_cast<const char*>(a.const_data_ptr()), 12);
  a.fill_(7);
  EXPECT_EQ(b.sum().item<float>(), 5);
  EXPECT_EQ(read_file(folder / "x"), before);
}

TEST(SafeTensors, OverwritesTheFileItWasLoadedFrom) {
  const TemporaryFolder folder;
  save_safetensors(folder / "x", {{"a", filled({3, 5}, at::kFloat)}});
  auto loaded = load_safetensors(folder / "x");
  loaded.tensors.emplace_back("b", loaded.tensors[0].second * 2);
  save_safetensors(folder / "x", loaded.tensors);
  EXPECT_TRUE(at::equal(load_safetensors(folder / "x").at("b", "test"), filled({3, 5}, at::kFloat) * 2));
}

TEST(SafeTensors, RefusesToWriteWhatTheFormatLacks) {
  const TemporaryFolder folder;
  const auto refuses = [&](const std::vector<std::pair<std::string, Tensor>>& tensors,
                           const std::map<std::string, std::string>& metadata, const std::vector<std::string>& parts) {
    return throws_error([&] { save_safetensors(folder / "x", tensors, metadata); }, parts);
  };
  const Tensor one = at::ones({1});
  EXPECT_TRUE(refuses({{"a", one}, {"a", one}}, {}, {"tensor \"a\" is given twice"}));
  EXPECT_TRUE(refuses({{"__metadata__", one}}, {}, {"reserved"}));
  EXPECT_TRUE(refuses({{"a", Tensor()}}, {}, {"tensor \"a\" is undefined"}));
  EXPECT_TRUE(refuses({{"a", one.to(at::kComplexFloat)}}, {}, {"ComplexFloat", "expected one of F64"}));
  EXPECT_TRUE(refuses({{"a", one.to_sparse()}}, {}, {"expected dense"}));
  EXPECT_TRUE(refuses({{"\xff", one}}, {}, {"not UTF-8"}));
  EXPECT_TRUE(refuses({}, {{"k", "\xff"}}, {"not UTF-8"}));
  EXPECT_EQ(folder.names(), Names({}));
}

struct Hostile {
  const char* rule;
  std::string bytes;
  const char* message;
};

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"("a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::vector<Hostile> hostile_files() {
  const std::string four(4, '\0'), eight(8, '\0');
  const auto one = [&](const std::string& dtype, const std::string& shape, const std::string& offsets,
                       const std::string& data) { return bytes_of("{" + tensor(dtype, shape, offsets) + "}", data); };
  const auto two = [&](const std::string& first, const std::string& second, const std::string& data) {
    return bytes_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
                        R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}",
                    data);
  };
  std::string huge = bytes_of("{}");
  std::memset(huge.data(), 0xff, 8);
  std::string over = bytes_of("{}");
  over[0] = 3;
  std::string deep = R"({"a":)";
  for (int i = 0; i < 100'000; ++i) deep += '[';
  std::string long_name(100'000, 'n');
  std::string ranks = "[1";
  for (int i = 0; i < 64; ++i) ranks += ",1";
  return {
      {"empty", "", "the file has 0 bytes, expected at least 8"},
      {"short", "1234567", "the file has 7 bytes"},
      {"huge header", huge, "expected at most 100000000"},
      {"header past the end", over, "header of 3 bytes, but only 2 follow"},
      {"no header", bytes_of(""), "header is not JSON"},
      {"not JSON", bytes_of("{]"), "header is not JSON at byte 2"},
      {"trailing", bytes_of("{}{}"), "header is not JSON"},
      {"not UTF-8", bytes_of("{\"\xff\":1}"), "header is not JSON"},
      {"number out of range", bytes_of("{\"a\":1e999}"), "out of range"},
      {"array", bytes_of("[]"), "header is [], expected an object"},
      {"deep", bytes_of(deep), "nests deeper than 8"},
      {"twice", bytes_of("{" + tensor("\"U8\"", "[4]", "[0,4]") + "," + tensor("\"U8\"", "[4]", "[4,8]") + "}", eight),
       "header names \"a\" twice"},
      {"field twice", bytes_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", four),
       "header names \"dtype\" twice"},
      {"metadata list", bytes_of(R"({"__metadata__":[]})"), "__metadata__ is []"},
      {"metadata number", bytes_of(R"({"__metadata__":{"k":3}})"), "__metadata__ \"k\" is 3, expected a string"},
      {"tensor is a number", bytes_of(R"({"a":3})"), "tensor \"a\": expected an object, got 3"},
      {"long name", bytes_of("{\"" + long_name + "\":3}"), "nnn...: expected an object"},
      {"line break in a name", bytes_of(R"({"a\nb":3})"), R"(tensor "a\nb")"},
      {"no dtype", bytes_of(R"({"a":{"shape":[4],"data_offsets":[0,4]}})", four), "no dtype"},
      {"no shape", bytes_of(R"({"a":{"dtype":"U8","data_offsets":[0,4]}})", four), "no shape"},
      {"no offsets", bytes_of(R"({"a":{"dtype":"U8","shape":[4]}})", four), "no data_offsets"},
      {"unknown field", bytes_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}})", four),
       "unknown field"},
      {"unknown dtype", one("\"F7\"", "[4]", "[0,4]", four), "dtype is \"F7\", expected one of F64"},
      {"dtype number", one("7", "[4]", "[0,4]", four), "dtype is 7"},
      {"shape number", one("\"U8\"", "4", "[0,4]", four), "shape is 4, expected a list"},
      {"negative shape", one("\"U8\"", "[-4]", "[0,4]", four), "shape is [-4]"},
      {"two negatives", one("\"U8\"", "[-2,-2]", "[0,4]", four), "shape is [-2,-2]"},
      {"fraction", one("\"U8\"", "[4.0]", "[0,4]", four), "shape is [4.0]"},
      {"shape past 63 bits", one("\"U8\"", "[9223372036854775808]", "[0,4]", four), "shape is [9223372036854775808]"},
      {"rank", one("\"U8\"", ranks + "]", "[0,1]", "x"), "expected a list of at most 64"},
      {"product overflows", one("\"U8\"", "[4294967296,4294967297]", "[0,4]", four), "overflows 64 bits"},
      {"product overflows to the size", one("\"F64\"", "[2305843009213693953]", "[0,8]", eight), "overflows 64 bits"},
      {"zero hides an overflow", one("\"U8\"", "[0,4294967296,4294967296]", "[0,0]", ""), "overflows 64 bits"},
      {"one offset", one("\"U8\"", "[4]", "[4]", four), "expected a list of 2 integers"},
      {"three offsets", one("\"U8\"", "[4]", "[0,4,4]", four), "expected a list of 2 integers"},
      {"offset text", one("\"U8\"", "[4]", "[\"0\",4]", four), "expected a list of 2 integers"},
      {"negative offset", one("\"U8\"", "[4]", "[-4,0]", four), "data_offsets is [-4,0]"},
      {"backwards", one("\"U8\"", "[4]", "[4,0]", four), "data_offsets are 4 to 0"},
      {"truncated", one("\"U8\"", "[5]", "[0,5]", four), "the file holds 4 bytes of tensors"},
      {"wrong length", one("\"F32\"", "[2]", "[0,4]", four), "span 4 bytes, expected 8 for F32 [2]"},
      {"not empty", one("\"F32\"", "[2,0]", "[0,4]", four), "span 4 bytes, expected 0"},
      {"overlap", two("[0,4]", "[2,6]", std::string(6, '\0')), "begins at byte 2 inside another, which ends at 4"},
      {"same bytes", two("[0,4]", "[0,4]", four), "begins at byte 0 inside another"},
      {"hole", two("[0,4]", "[5,9]", std::string(9, '\0')), "begins at byte 5, expected 4: a hole"},
      {"hole at the start", one("\"U8\"", "[4]", "[4,8]", eight), "begins at byte 4, expected 0: a hole"},
      {"bytes left", one("\"U8\"", "[4]", "[0,4]", eight), "tensors end at byte 4, but 8 bytes follow"},
      {"no truth", one("\"BOOL\"", "[4]", "[0,4]", std::string("\0\1\2\1", 4)), "byte 2 is 2, expected 0 or 1"},
  };
}

TEST(SafeTensors, RefusesHostileFiles) {
  const TemporaryFolder folder;
  const std::string path = (folder / "x").string();
  for (const auto& [rule, bytes, message] : hostile_files()) {
    write_atomic(path, bytes);
    EXPECT_TRUE(throws_error([&] { load_safetensors(path); }, {path, message})) << rule;
  }
}

TEST(SafeTensors, LoadsWhatIsOddButValid) {
  const TemporaryFolder folder;
  // Tensors out of order in the header, whitespace, an unaligned float, an empty tensor between.
  const float value = 1.5;
  std::string data = "abc" + std::string(sizeof value, '\0');
  std::memcpy(data.data() + 3, &value, sizeof value);
  write_atomic(folder / "x", bytes_of(R"( {"f":{"shape":[1],"data_offsets":[3,7],"dtype":"F32"},)"
                                      R"("e":{"dtype":"I64","shape":[0],"data_offsets":[3,3]},)"
                                      "\n"
                                      R"("u":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}} )",
                                      data));
  const SafeTensors loaded = load_safetensors(folder / "x");
  ASSERT_EQ(loaded.tensors.size(), 3u);
  EXPECT_EQ(loaded.tensors[0].first, "u");
  EXPECT_EQ(loaded.tensors[1].first, "e");
  EXPECT_EQ(loaded.tensors[2].first, "f");
  EXPECT_EQ(loaded.at("f", "test").item<float>(), value);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(loaded.at("f", "test").const_data_ptr()) % sizeof value, 0u);
  EXPECT_EQ(loaded.at("u", "test").sum().item<int64_t>(), 'a' + 'b' + 'c');
}

/// Reads every byte of what loads, so that a tensor reaching past the map would crash.
bool loads(const std::filesystem::path& path) {
  try {
    for (const auto& [name, tensor] : load_safetensors(path).tensors) {
      EXPECT_LT(tensor.nbytes(), 4096u) << name;
      if (tensor.numel() > 0) tensor.clone().fill_(0);
    }
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return false;
  }
}

TEST(SafeTensors, SurvivesRandomFiles) {
  const TemporaryFolder folder;
  save_safetensors(folder / "valid",
                   {{"w", filled({3, 5}, at::kFloat)},
                    {"b", filled({7}, at::kBool)},
                    {"h", filled({3}, at::kHalf)},
                    {"none", at::empty({0, 3})}},
                   {{"format", "pt"}});
  const std::string valid = read_file(folder / "valid");
  uint64_t header_size = 0;
  std::memcpy(&header_size, valid.data(), sizeof header_size);
  std::mt19937_64 random(20240613);
  const auto below = [&](uint64_t n) { return random() % n; };
  const std::string alphabet = "{}[]\",:0123456789-.eEdtypshafo_BUILF \\u";

  const auto path = folder / "x";
  const auto write = [&](const std::string& bytes) {  // without write_atomic's fsync
    std::FILE* file = std::fopen(path.c_str(), "wb");
    std::fwrite(bytes.data(), 1, bytes.size(), file);
    std::fclose(file);
  };
  int loaded = 0, refused = 0;
  for (int round = 0; round < 6000; ++round) {
    std::string bytes = valid;
    if (round % 6 == 0) {
      bytes.resize(below(bytes.size()));
    } else if (round % 6 == 1) {
      bytes = bytes_of("");
      for (uint64_t i = below(64); i > 0; --i) bytes += alphabet[below(alphabet.size())];
      bytes[0] = static_cast<char>(bytes.size() - 8);
    } else {
      for (uint64_t i = 1 + below(3); i > 0; --i) {
        // Mostly in the header, where there is something to break.
        const size_t at = below(4) == 0 ? below(bytes.size()) : 8 + below(header_size);
        if (round % 6 == 2) bytes[at] = static_cast<char>(below(256));
        if (round % 6 == 3) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        if (round % 6 == 4) bytes[at] = alphabet[below(alphabet.size())];
        if (round % 6 == 5) {
          const size_t digit = bytes.find_first_of("0123456789", at);
          if (digit != std::string::npos) bytes[digit] = static_cast<char>('0' + below(10));
        }
      }
    }
    write(bytes);
    ++(loads(path) ? loaded : refused);
  }
  EXPECT_GT(loaded, 100);
  EXPECT_GT(refused, 3000);
}

}  // namespace
}  // namespace lineal
