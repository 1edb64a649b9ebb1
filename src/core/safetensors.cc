#include "core/safetensors.h"

#include <ATen/ATen.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/error.h"
#include "core/file.h"

namespace lineal {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

using SortedJson = nlohmann::json;  // sorted: the ordered one is quadratic in the number of tensors

constexpr size_t kMostHeader = 100'000'000;  // the public loader's bound
constexpr int kMostDepth = 8;
constexpr size_t kMostRank = 64;  // what ATen's iterators take
constexpr const char* kMetadata = "__metadata__";

struct Type {
  const char* name;
  at::ScalarType type;
};
constexpr Type kTypes[] = {{"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
                           {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
                           {"U8", at::kByte},    {"BOOL", at::kBool}};

std::string type_names() {
  std::string names;
  for (const Type& type : kTypes) names += text(names.empty() ? "" : " ", type.name);
  return names;
}

/// `value` on one line of bounded length, whatever a file holds.
std::string in_ascii(const SortedJson& value) {
  std::string line = value.dump(-1, ' ', /*ensure_ascii=*/true, SortedJson::error_handler_t::replace);
  if (line.size() > 100) line = line.substr(0, 97) + "...";
  return line;
}

/// Bytes of a tensor, or nothing on overflow. Zero sizes count as one, since ATen multiplies strides so.
std::optional<int64_t> padded_bytes(const std::vector<int64_t>& shape, at::ScalarType type) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(type));
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes)) return {};
  }
  return bytes;
}

bool empty(const std::vector<int64_t>& shape) { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

/// One tensor of the header: bytes [begin, end) after it.
struct Span {
  TensorEntry entry;
  int64_t begin, end;
};

class Loader {
 public:
  explicit Loader(const std::filesystem::path& path) : file_(path.string()), map_(std::make_shared<MappedFile>(path)) {}

  SafeTensors load() {
    parse_header();
    SafeTensors result;
    const auto metadata = header_.find(kMetadata);
    if (metadata != header_.end()) result.metadata = read_metadata(*metadata);
    std::vector<Span> spans;
    for (const auto& name : order_) {
      if (name != kMetadata) spans.push_back(read_span(name, header_.at(name)));
    }
    header_ = SortedJson();
    check_cover(spans);
    for (auto& span : spans) result.tensors.emplace_back(span.entry.name, tensor(span));
    return result;
  }

 private:
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(file_, ": ", parts..., "; is it a complete safetensors file?");
  }
  template <class... Parts>
  [[noreturn]] void refuse_tensor(const std::string& name, const Parts&... parts) const {
    fail(file_, ": tensor ", in_ascii(name), ": ", parts...);
  }

  void parse_header() {
    uint64_t length = 0;
    if (map_->size() < sizeof length) refuse("the file has ", map_->size(), " bytes, expected at least 8");
    std::memcpy(&length, map_->data(), sizeof length);
    if (length > kMostHeader) refuse("header of ", length, " bytes, expected at most ", kMostHeader);
    const size_t rest = map_->size() - sizeof length;
    if (length > rest) refuse("header of ", length, " bytes, but only ", rest, " follow");
    const char* begin = map_->data() + sizeof length;
    data_ = map_->data() + sizeof length + length;
    data_size_ = static_cast<int64_t>(rest - length);

    std::vector<std::set<std::string>> names;  // of the objects that are open
    const auto check = [&](int depth, SortedJson::parse_event_t event, const SortedJson& value) {
      if (depth > kMostDepth) refuse("header nests deeper than ", kMostDepth);
      if (event == SortedJson::parse_event_t::object_start) names.emplace_back();
      if (event == SortedJson::parse_event_t::object_end) names.pop_back();
      if (event == SortedJson::parse_event_t::key) {
        const auto& name = value.get_ref<const std::string&>();
        if (!names.back().insert(name).second) refuse("header names ", in_ascii(name), " twice");
        if (names.size() == 1) order_.push_back(name);
      }
      return true;
    };
    try {
      header_ = SortedJson::parse(begin, begin + length, check);
    } catch (const SortedJson::parse_error& error) {
      refuse("header is not JSON at byte ", error.byte);
    } catch (const SortedJson::exception&) {
      refuse("header holds a number that is out of range");
    }
    if (!header_.is_object()) refuse("header is ", in_ascii(header_), ", expected an object");
  }

  std::map<std::string, std::string> read_metadata(const SortedJson& object) const {
    if (!object.is_object()) refuse(kMetadata, " is ", in_ascii(object), ", expected an object of strings");
    std::map<std::string, std::string> metadata;
    for (const auto& [name, value] : object.items()) {
      if (!value.is_string()) refuse(kMetadata, " ", in_ascii(name), " is ", in_ascii(value), ", expected a string");
      metadata.emplace(name, value.get<std::string>());
    }
    return metadata;
  }

  const SortedJson& field(const std::string& name, const SortedJson& object, const char* key) const {
    const auto found = object.find(key);
    if (found == object.end()) refuse_tensor(name, "no ", key, ", expected dtype, shape and data_offsets");
    return *found;
  }

  std::vector<int64_t> counts(const std::string& name, const char* key, const SortedJson& list, size_t least,
                              size_t most) const {
    const auto bad = [](const SortedJson& value) {
      return !value.is_number_integer() || value < 0 || value > std::numeric_limits<int64_t>::max();
    };
    if (!list.is_array() || list.size() < least || list.size() > most || std::any_of(list.begin(), list.end(), bad)) {
      const std::string length = least == most ? text(most) : text("at most ", most);
      refuse_tensor(name, key, " is ", in_ascii(list), ", expected a list of ", length, " integers of at least 0");
    }
    return list.get<std::vector<int64_t>>();
  }

  Span read_span(const std::string& name, const SortedJson& object) const {
    if (!object.is_object()) refuse_tensor(name, "expected an object, got ", in_ascii(object));
    if (object.size() > 3) refuse_tensor(name, "unknown field, expected only dtype, shape and data_offsets");
    const SortedJson& dtype = field(name, object, "dtype");
    const auto type =
        std::find_if(std::begin(kTypes), std::end(kTypes), [&](const Type& t) { return dtype == t.name; });
    if (type == std::end(kTypes)) refuse_tensor(name, "dtype is ", in_ascii(dtype), ", expected one of ", type_names());
    Span span{{name, type->type, counts(name, "shape", field(name, object, "shape"), 0, kMostRank)}, 0, 0};
    const auto offsets = counts(name, "data_offsets", field(name, object, "data_offsets"), 2, 2);
    span.begin = offsets[0];
    span.end = offsets[1];
    if (span.begin > span.end || span.end > data_size_) {
      refuse_tensor(name, "data_offsets are ", span.begin, " to ", span.end, ", but the file holds ", data_size_,
                    " bytes of tensors; is it complete?");
    }
    const auto bytes = padded_bytes(span.entry.shape, type->type);
    if (!bytes) refuse_tensor(name, "shape ", in_ascii(span.entry.shape), " overflows 64 bits");
    const int64_t expected = empty(span.entry.shape) ? 0 : *bytes;
    if (span.end - span.begin != expected) {
      refuse_tensor(name, "data_offsets span ", span.end - span.begin, " bytes, expected ", expected, " for ",
                    type->name, " ", in_ascii(span.entry.shape));
    }
    return span;
  }

  /// Sorts by offset; the tensors must cover the bytes exactly.
  void check_cover(std::vector<Span>& spans) const {
    std::stable_sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    int64_t end = 0;
    for (const Span& span : spans) {
      if (span.begin < end) {
        refuse_tensor(span.entry.name, "begins at byte ", span.begin, " inside another, which ends at ", end);
      }
      if (span.begin > end) {
        refuse_tensor(span.entry.name, "begins at byte ", span.begin, ", expected ", end, ": a hole");
      }
      end = span.end;
    }
    if (end != data_size_) {
      refuse("tensors end at byte ", end, ", but ", data_size_, " bytes follow the header");
    }
  }

  Tensor tensor(const Span& span) const {
    const auto options = at::TensorOptions(span.entry.type);
    if (span.begin == span.end) return at::empty(span.entry.shape, options);
    char* from = data_ + span.begin;
    if (span.entry.type == at::kBool) {
      const char* bad = std::find_if(from, data_ + span.end, [](char byte) { return (byte & ~1) != 0; });
      if (bad != data_ + span.end) {
        refuse_tensor(span.entry.name, "byte ", bad - from, " is ", int{static_cast<unsigned char>(*bad)},
                      ", expected 0 or 1 for BOOL");
      }
    }
    if (reinterpret_cast<uintptr_t>(from) % c10::elementSize(span.entry.type) != 0) {
      Tensor copy = at::empty(span.entry.shape, options);
      std::memcpy(copy.data_ptr(), from, static_cast<size_t>(span.end - span.begin));
      return copy;
    }
    return at::from_blob(
        from, span.entry.shape, [map = map_](void*) {}, options);
  }

  std::string file_;
  std::shared_ptr<MappedFile> map_;
  char* data_ = nullptr;
  int64_t data_size_ = 0;
  SortedJson header_;
  std::vector<std::string> order_;  // names as the header gives them
};

std::string quoted(const std::string& who, const std::string& value) {
  try {
    return SortedJson(value).dump();
  } catch (const SortedJson::exception&) {
    fail(who, ": ", in_ascii(value), " is not UTF-8, which safetensors requires");
  }
}

}  // namespace

const Tensor* SafeTensors::find(const std::string& name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& item) { return item.first == name; });
  return found == tensors.end() ? nullptr : &found->second;
}

const Tensor& SafeTensors::at(const std::string& name, const std::string& who) const {
  if (const Tensor* tensor = find(name)) return *tensor;
  std::vector<std::string> names;
  for (const auto& item : tensors) names.push_back(item.first);
  const std::string near = nearest(name, names);
  fail(who, ": no tensor '", name, "' among ", names.size(),
       near.empty() ? "" : "; the nearest name is '" + near + "'");
}

SafeTensors load_safetensors(const std::filesystem::path& path) { return Loader(path).load(); }

void drop_pages(const Tensor& tensor) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) + tensor.nbytes()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string safetensors_header(const std::string& who, const std::vector<TensorEntry>& entries,
                               const std::map<std::string, std::string>& metadata, size_t length) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += text('"', kMetadata, "\":{");
    for (const auto& [name, value] : metadata) {
      json += text(json.back() == '{' ? "" : ",", quoted(who, name), ":", quoted(who, value));
    }
    json += "}";
  }
  std::set<std::string> names = {kMetadata};
  int64_t end = 0;
  for (const auto& [name, scalar, shape] : entries) {
    if (!names.insert(name).second) fail(who, ": tensor ", in_ascii(name), " is given twice or reserved");
    const auto type =
        std::find_if(std::begin(kTypes), std::end(kTypes), [&, s = scalar](const Type& t) { return t.type == s; });
    if (type == std::end(kTypes)) {
      fail(who, ": tensor ", in_ascii(name), " is ", c10::toString(scalar), ", expected one of ", type_names());
    }
    const int64_t begin = end;
    end += empty(shape) ? 0 : padded_bytes(shape, scalar).value();
    json += text(json.size() == 1 ? "" : ",", quoted(who, name), ":{\"dtype\":\"", type->name,
                 "\",\"shape\":", SortedJson(shape).dump(), ",\"data_offsets\":[", begin, ",", end, "]}");
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  if (length != 0) {
    if (json.size() + 8 > length) fail(who, ": header of ", json.size() + 8, " bytes, expected at most ", length);
    json.resize(length - 8, ' ');
  }
  if (json.size() > kMostHeader) fail(who, ": header of ", json.size(), " bytes, expected at most ", kMostHeader);
  const uint64_t size = json.size();
  std::string header(sizeof size, '\0');
  std::memcpy(header.data(), &size, sizeof size);
  return header += json;
}

void save_safetensors(const std::filesystem::path& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  const std::string who = "cannot write " + path.string();
  std::vector<TensorEntry> entries;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) fail(who, ": tensor ", in_ascii(name), " is undefined");
    if (tensor.layout() != at::kStrided)
      fail(who, ": tensor ", in_ascii(name), " is ", tensor.layout(), ", expected dense");
    entries.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  const std::string header = safetensors_header(who, entries, metadata);
  write_atomic(path, [&](FileWriter& writer) {
    writer.write(header.data(), header.size());
    for (const auto& [name, tensor] : tensors) {
      const Tensor bytes = tensor.detach().cpu().contiguous();
      writer.write(bytes.const_data_ptr(), static_cast<size_t>(bytes.nbytes()));
    }
  });
}

}  // namespace lineal
