#include "data/token_store.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "data/shuffle.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

// The cache file: tokens [N], padding [0 to 7], ends [documents], hashes [documents]. Padding keeps the last two
// aligned, or loading would copy them.
constexpr const char* kVersion = "lineal tokens 2";
constexpr int64_t kStoreBlock = 1 << 20;

std::string hex(uint64_t value) {
  std::string digits(16, '0');
  for (size_t i = 0; i < digits.size(); ++i) digits[i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
  return digits;
}

/// What the tokens depend on: `place` names the cache file, `content` tells whether it is still right.
struct Identity {
  std::string place;
  std::string content;
};

Identity identify(const std::vector<Source>& sources, const Tokenizer& tokenizer, const std::string& tokenizer_id,
                  const TextOptions& options) {
  // Lengths before texts keep ("ab", "c") apart from ("a", "bc").
  const auto item = [](const std::string& value) { return text(value.size(), ':', value); };
  std::string place = text(kVersion, item(tokenizer_id), tokenizer.vocab_size(), item(options.text_field));
  std::string content;
  for (const Source& source : sources) {
    place += item(fs::absolute(source.path).lexically_normal().string());
    content += text(source.size, ' ', source.modified_ns, ' ');
  }
  const uint64_t hash = hash_bytes(content, hash_bytes(place));
  return {hex(mix(hash_bytes(place), place.size())), hex(hash) + hex(mix(hash_bytes(content), content.size()))};
}

at::ScalarType token_type(const Tokenizer& tokenizer) { return tokenizer.vocab_size() <= 256 ? at::kByte : at::kInt; }

/// What is known of the documents once their tokens have been read.
struct Documents {
  std::vector<int64_t> ends, hashes;
  int64_t tokens() const { return ends.empty() ? 0 : ends.back(); }
};

using TokenSink = std::function<void(std::string_view tokens)>;

Documents tokenize(const std::vector<Source>& sources, const Tokenizer& tokenizer, const TokenStoreOptions& options,
                   const TokenSink& sink) {
  int64_t total = 0;
  for (const Source& source : sources) total += source.size;
  if (std::any_of(sources.begin(), sources.end(), [](const Source& source) { return !source.regular; })) total = 0;
  const bool narrow = token_type(tokenizer) == at::kByte;
  const int64_t vocabulary = tokenizer.vocab_size();

  Documents documents;
  std::string block;  // tokens not yet given to the sink
  int64_t reported = 0;
  const SpecialTokens special = tokenizer.special();
  const auto add = [&](int64_t id) {
    if (id < 0 || id >= vocabulary) fail("tokenizer: token id ", id, ", expected 0 to ", vocabulary - 1);
    ++documents.ends.back();
    if (narrow) {
      block.push_back(static_cast<char>(id));
    } else {
      const auto value = static_cast<int32_t>(id);
      block.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  };
  const auto end_document = [&] {
    if (special.end && !documents.ends.empty()) add(*special.end);
  };
  TextReader reader(sources, options.text);
  for (TextPiece piece; reader.next(piece);) {
    if (piece.starts_document) {
      end_document();
      documents.ends.push_back(documents.tokens());
      documents.hashes.push_back(static_cast<int64_t>(hash_bytes("")));
      if (special.begin) add(*special.begin);
    }
    for (const int64_t id : tokenizer.encode(piece.bytes)) add(id);
    int64_t& hash = documents.hashes.back();
    hash = static_cast<int64_t>(hash_bytes(piece.bytes, static_cast<uint64_t>(hash)));
    if (static_cast<int64_t>(block.size()) >= kStoreBlock) {
      sink(block);
      block.clear();
    }
    if (options.progress && reader.bytes_read() - reported >= kStoreBlock) {
      reported = reader.bytes_read();
      options.progress(reported, total);
    }
  }
  end_document();
  sink(block);
  return documents;
}

std::shared_ptr<TokenStore> load(const fs::path& path, const std::string& content) {
  const SafeTensors file = load_safetensors(path);
  const auto found = file.metadata.find("content");
  if (found == file.metadata.end() || found->second != content) fail(path.string(), ": made from other sources");
  return std::make_shared<TokenStore>(file.at("tokens", path.string()), file.at("ends", path.string()),
                                      file.at("hashes", path.string()));
}

std::string header(const fs::path& path, at::ScalarType type, int64_t tokens, int64_t padding, int64_t documents,
                   const std::string& content, size_t length) {
  return safetensors_header(path.string(),
                            {{"tokens", type, {tokens}},
                             {"padding", at::kByte, {padding}},
                             {"ends", at::kLong, {documents}},
                             {"hashes", at::kLong, {documents}}},
                            {{"format", kVersion}, {"content", content}}, length);
}

/// Builds the cache file. `reading` is true while the sources are at work, so that their errors can be told from the
/// cache's.
void build_file(const fs::path& path, const std::string& content, const std::vector<Source>& sources,
                const Tokenizer& tokenizer, const TokenStoreOptions& options, bool& reading) {
  const at::ScalarType type = token_type(tokenizer);
  const int64_t most = int64_t{1} << 56;
  const size_t room = header(path, type, most, 7, most, content, 0).size();  // as long as it can get
  write_atomic(path, [&](FileWriter& writer) {
    writer.write(std::string(room, ' ').data(), room);
    reading = true;
    const Documents documents = tokenize(sources, tokenizer, options, [&](std::string_view tokens) {
      reading = false;
      writer.write(tokens.data(), tokens.size());
      reading = true;
    });
    reading = false;
    const auto count = static_cast<int64_t>(documents.ends.size());
    const int64_t bytes = documents.tokens() * static_cast<int64_t>(c10::elementSize(type));
    const int64_t padding = (8 - bytes % 8) % 8;
    writer.write(std::string(8, '\0').data(), static_cast<size_t>(padding));
    for (const auto* list : {&documents.ends, &documents.hashes}) {
      writer.write(list->data(), list->size() * sizeof(int64_t));
    }
    const std::string start = header(path, type, documents.tokens(), padding, count, content, room);
    writer.write_at(0, start.data(), start.size());
  });
}

/// A tensor that keeps the vector it shows.
template <class T>
Tensor shared(std::vector<T> values, at::ScalarType type) {
  const auto keep = std::make_shared<std::vector<T>>(std::move(values));
  const auto size = static_cast<int64_t>(keep->size() * sizeof(T) / c10::elementSize(type));
  if (size == 0) return at::empty({0}, type);
  return at::from_blob(
      keep->data(), {size}, [keep](void*) {}, type);
}

std::shared_ptr<TokenStore> build_in_memory(const std::vector<Source>& sources, const Tokenizer& tokenizer,
                                            const TokenStoreOptions& options) {
  std::vector<char> all;
  Documents documents = tokenize(sources, tokenizer, options,
                                 [&](std::string_view tokens) { all.insert(all.end(), tokens.begin(), tokens.end()); });
  return std::make_shared<TokenStore>(shared(std::move(all), token_type(tokenizer)),
                                      shared(std::move(documents.ends), at::kLong),
                                      shared(std::move(documents.hashes), at::kLong));
}

}  // namespace

fs::path default_cache_folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && fs::path(cache).is_absolute()) return fs::path(cache) / "lineal";
  const char* home = std::getenv("HOME");
  if (home != nullptr && fs::path(home).is_absolute()) return fs::path(home) / ".cache" / "lineal";
  return {};
}

TokenStore::TokenStore(Tensor tokens, Tensor ends, Tensor hashes)
    : token_tensor_(std::move(tokens)), end_tensor_(std::move(ends)), hash_tensor_(std::move(hashes)) {
  const auto is = [](const Tensor& tensor, at::ScalarType type) {
    return tensor.defined() && tensor.dim() == 1 && tensor.scalar_type() == type && tensor.is_contiguous() &&
           tensor.device().is_cpu();
  };
  if (!is(token_tensor_, at::kByte) && !is(token_tensor_, at::kInt)) fail("token store: tokens are not U8 or I32 [N]");
  if (!is(end_tensor_, at::kLong) || !is(hash_tensor_, at::kLong) || end_tensor_.numel() != hash_tensor_.numel()) {
    fail("token store: ends and hashes are not I64 [documents]");
  }
  size_ = token_tensor_.numel();
  documents_ = end_tensor_.numel();
  ends_ = end_tensor_.const_data_ptr<int64_t>();
  hashes_ = hash_tensor_.const_data_ptr<int64_t>();
  const bool ordered = std::is_sorted(ends_, ends_ + documents_) && (documents_ == 0 || ends_[0] >= 0);
  if (!ordered || (documents_ == 0 ? 0 : ends_[documents_ - 1]) != size_) {
    fail("token store: the documents' ends do not fit ", size_, " tokens");
  }
}

std::shared_ptr<const TokenStore> TokenStore::open(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                                                   const std::string& tokenizer_id, const TokenStoreOptions& options) {
  const std::vector<Source> sources = find_sources(paths, tokenizer.format());
  const auto stream = std::find_if(sources.begin(), sources.end(), [](const Source& s) { return !s.regular; });
  std::string uncached;
  if (stream != sources.end()) {
    uncached = (stream->path == "-" ? "standard input" : stream->path) + " is not a file whose changes can be seen";
  } else if (options.cache_folder.empty()) {
    uncached = "there is no cache folder";
  } else {
    const Identity identity = identify(sources, tokenizer, tokenizer_id, options.text);
    const fs::path path = options.cache_folder / (identity.place + ".safetensors");
    try {
      auto store = load(path, identity.content);
      store->built_ = false;
      return store;
    } catch (const Error&) {
      // Missing, of other sources, or damaged: built again.
    }
    bool reading = false;
    try {
      std::error_code ignored;  // write_atomic tells why the folder is missing
      fs::create_directories(options.cache_folder, ignored);
      remove_stale_temporaries(options.cache_folder);
      build_file(path, identity.content, sources, tokenizer, options, reading);
      return load(path, identity.content);
    } catch (const Error& error) {
      if (reading) throw;
      uncached = error.what();
    }
  }
  auto store = build_in_memory(sources, tokenizer, options);
  store->uncached_ = uncached;
  return store;
}

std::string TokenStore::fingerprint() const {
  uint64_t all = 0;
  for (int64_t i = 0; i < documents_; ++i) all = mix(mix(all, hash(i)), static_cast<uint64_t>(document(i).size()));
  return hex(all);
}

void TokenStore::copy(TokenSpan span, int64_t* to) const {
  if (token_tensor_.scalar_type() == at::kByte) {
    const uint8_t* from = token_tensor_.const_data_ptr<uint8_t>();
    std::copy(from + span.begin, from + span.end, to);
  } else {
    const int32_t* from = token_tensor_.const_data_ptr<int32_t>();
    std::copy(from + span.begin, from + span.end, to);
  }
}

}  // namespace lineal
