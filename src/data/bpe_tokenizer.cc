// Byte pair encoding as published models have it: a tokenizer.json, or GPT-2's vocab.json and merges.txt.
//   text -> added tokens and the text between them -> normalizers -> pre-tokenizers -> merges in each piece -> ids
// encode() gives what the tokenizers library gives without special tokens, whatever the file's post-processor adds to
// one call: a document's begin and end are special()'s, put around it by whoever reads documents, which come in pieces.
// Bytes that are no UTF-8, which that library does not take, pass through normalizers and are pieces of their own.
// decode() is those bytes; a blank that encode() put before the text goes where the begin token tells that the text
// begins there, so that the text of some ids and of those after them is the text of all.
#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <map>

#include "core/config.h"
#include "core/error.h"
#include "core/file.h"
#include "data/shuffle.h"
#include "data/unicode.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(TokenizerParts parts, const SpecialTokens& special, std::vector<NamedFile> files, const std::string& who)
      : parts_(std::move(parts)), bpe_(parts_.model, who), special_(special), files_(std::move(files)) {
    const auto count = static_cast<int64_t>(parts_.model.vocabulary.size() + parts_.added.size());
    const int64_t most = 2 * count + 1024;
    int64_t size = bpe_.size();
    for (const AddedToken& token : parts_.added) {
      if (token.id < 0 || token.id >= most) {
        fail(who, ": added token ", shown(token.content), " has id ", token.id, ", expected 0 to ", most - 1, " for ",
             count, " tokens");
      }
      size = std::max(size, token.id + 1);
    }
    pieces_.resize(static_cast<size_t>(size));
    for (const auto& [token, id] : parts_.model.vocabulary) pieces_[at(id)] = parts_.decoder.bytes(token);
    std::map<int64_t, std::string> contents;
    for (const auto& [token, id] : parts_.model.vocabulary) contents.emplace(id, "");
    for (const AddedToken& token : parts_.added) add(token, who, contents);
    if (bpe_.words_begin_with_blanks()) {
      for (PreTokenizer* words : {&parts_.first, &parts_.later}) *words = sequence({*words, before_blanks()});
    }
    parts_.model = {};
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(pieces_.size()); }
  SpecialTokens special() const override { return special_; }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    bool first = true;
    const auto words = [&](std::string_view piece, int64_t id) {
      if (id >= 0) {
        ids.push_back(id);
      } else {
        (first ? parts_.first : parts_.later)(piece, [&](std::string_view word) { bpe_.encode(word, ids); });
      }
      first = false;
    };
    added_.split(text, [&](std::string_view part, int64_t id) {
      if (id >= 0 || parts_.normalizers.empty()) return id >= 0 ? words(part, id) : normalized_.split(part, words);
      std::string normal(part);
      for (const Normalizer& normalize : parts_.normalizers) {
        normal = normalize(std::move(normal));
        check_growth(normal.size(), part.size());
      }
      normalized_.split(normal, words);
    });
    return ids;
  }

  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string bytes;
    int64_t strip = 0;
    for (const int64_t id : ids) {
      if (id < 0 || id >= vocab_size()) {
        fail("bpe: token id ", id, " is out of range, expected 0 to ", vocab_size() - 1);
      }
      if (id == special_.begin) strip = parts_.decoder.strip_count;
      std::string_view piece = pieces_[at(id)];
      for (; strip > 0 && piece.starts_with(parts_.decoder.strip); --strip)
        piece.remove_prefix(parts_.decoder.strip.size());
      if (!piece.empty()) strip = 0;
      bytes += piece;
    }
    return bytes;
  }

  std::string identity() const override {
    std::string all;
    for (const auto& [name, file] : files_) all += text(name, ' ', file.size(), ' ', hash_bytes(file), ' ');
    return all;
  }
  void save(const fs::path& dir) const override {
    for (const auto& [name, file] : files_) write_atomic(dir / name, file);
  }

 private:
  static size_t at(int64_t id) { return static_cast<size_t>(id); }

  /// `contents`: of ids that are taken, "" for the vocabulary's.
  void add(const AddedToken& token, const std::string& who, std::map<int64_t, std::string>& contents) {
    const auto known = bpe_.find(token.content);
    if (known && known != token.id) {
      fail(who, ": added token ", shown(token.content), " has id ", token.id, ", and ", *known, " in the vocabulary");
    }
    const auto [found, added] = contents.emplace(token.id, token.content);
    if (!added && !known && found->second != token.content) {
      fail(who, ": added token ", shown(token.content), " has id ", token.id, ", which is another token's");
    }
    std::string& piece = pieces_[at(token.id)];
    if (!known || parts_.decoder.byte_level) piece = token.content;
    if (token.special || special_.has(token.id)) piece.clear();
    if (!token.normalized) return added_.add(token, token.content);
    std::string content = token.content;
    for (const Normalizer& normalize : parts_.normalizers) {
      content = normalize(std::move(content));
      check_growth(content.size(), token.content.size());
    }
    normalized_.add(token, content);
  }

  TokenizerParts parts_;
  Bpe bpe_;
  SpecialTokens special_;
  std::vector<NamedFile> files_;
  std::vector<std::string> pieces_;  // the bytes of each id
  AddedTokens added_, normalized_;   // found in the text as it is; in the normalized text
};

/// The begin, end, mask and pad token, by whichever file of the folder is the first to speak of them; where none does,
/// <|endoftext|>, <|begin_of_text|> and <|end_of_text|>, or <s> and </s>, among the special added tokens or GPT-2's.
class SpecialNames {
 public:
  SpecialNames(const fs::path& folder, TokenizerParts& parts, bool gpt2) : parts_(parts) {
    for (const auto& token : parts.model.vocabulary) ids_.emplace(token);
    for (const AddedToken& token : parts.added) ids_.emplace(token.content, token.id);
    for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", "config.json"}) {
      const std::string who = (folder / name).string();
      for (const auto& [key, value] : read_names(folder / name)) {
        for (const char* kind : {"bos", "eos", "mask", "pad"}) {
          if (key == std::string(kind) + "_token") by_name(kind, value, who);
          if (key == std::string(kind) + "_token_id" && name == std::string("config.json")) by_id(kind, value);
        }
      }
    }
    if (found_.contains("bos") || found_.contains("eos")) return;
    for (const auto& [begin, end] : {std::pair{"<|endoftext|>", "<|endoftext|>"},
                                     std::pair{"<|begin_of_text|>", "<|end_of_text|>"}, std::pair{"<s>", "</s>"}}) {
      const auto is = [](const char* content) {
        return [content](const AddedToken& token) { return token.content == content && token.special; };
      };
      const auto& added = parts.added;
      const bool there =
          std::any_of(added.begin(), added.end(), is(begin)) && std::any_of(added.begin(), added.end(), is(end));
      if (!there && !(gpt2 && ids_.contains(begin) && ids_.contains(end))) continue;
      found_["bos"] = begin, found_["eos"] = end;
      break;
    }
  }

  /// Adds what only a name made special to the added tokens.
  SpecialTokens tokens() {
    SpecialTokens special;
    const auto id = [&](const char* kind) -> std::optional<int64_t> {
      const std::string& content = found_[kind];
      const auto known = ids_.find(content);
      if (content.empty() || known == ids_.end()) return {};
      const auto is = [&](const AddedToken& token) { return token.content == content; };
      if (std::none_of(parts_.added.begin(), parts_.added.end(), is)) {
        parts_.added.push_back({.content = content, .id = known->second, .normalized = false, .special = true});
      }
      return known->second;
    };
    special.before_prompts = !parts_.first_token.empty() && parts_.first_token == found_["bos"];
    special.begin = id("bos"), special.end = id("eos"), special.mask = id("mask"), special.pad = id("pad");
    return special;
  }

  /// special_tokens_map.json
  std::string file() const {
    Json json = Json::object();
    for (const auto& [kind, content] : found_) json[kind + "_token"] = content.empty() ? Json() : Json(content);
    return json.dump(2) + "\n";
  }

 private:
  void by_name(const std::string& kind, const std::string& content, const std::string& who) {
    const bool needed = kind == "bos" || kind == "eos";
    if (needed && !content.empty() && !ids_.contains(content) && !found_.contains(kind)) {
      fail(who, ": ", kind, "_token is ", shown(content), ", which the vocabulary lacks");
    }
    found_.emplace(kind, content);
  }
  void by_id(const std::string& kind, const std::string& id) {
    if (id.empty() || found_.contains(kind)) return;
    for (const auto& [content, known] : ids_) {
      if (text(known) == id) return void(found_.emplace(kind, content));
    }  // else the family's default, which a smaller vocabulary lacks
  }

  TokenizerParts& parts_;
  std::map<std::string, int64_t> ids_;
  std::map<std::string, std::string> found_;  // content by kind; "": none
};

std::shared_ptr<Tokenizer> from_path(const fs::path& path) {
  if (path.empty()) {
    fail("bpe: no tokenizer, expected --tokenizer-file with a tokenizer.json, or a folder that has one, or vocab.json ",
         "and merges.txt");
  }
  const bool is_folder = fs::is_directory(path);
  const fs::path folder = (is_folder ? path / "" : path).lexically_normal().parent_path(), name = path.filename();
  const bool gpt2 = is_folder ? !fs::exists(folder / "tokenizer.json") : name == "vocab.json" || name == "merges.txt";
  if (gpt2 && !fs::exists(folder / "vocab.json")) {
    fail("bpe: ", folder.string(), " has neither tokenizer.json nor vocab.json, expected one of them");
  }
  const fs::path json = is_folder ? folder / "tokenizer.json" : path;
  const std::string who = (gpt2 ? folder / "vocab.json" : json).string();
  std::vector<NamedFile> files;
  TokenizerParts parts;
  std::vector<const char*> more = {"tokenizer_config.json"};
  if (gpt2) {
    parts = read_vocab_and_merges(folder);
    more.insert(more.end(), {"vocab.json", "merges.txt", "added_tokens.json"});
  } else {
    files.push_back({"tokenizer.json", read_file(json)});
    parts = read_tokenizer_json(files[0].bytes, who);
  }
  for (const char* file : more) {
    if (fs::exists(folder / file)) files.push_back({file, read_file(folder / file)});
  }
  SpecialNames names(folder, parts, gpt2);
  files.push_back({"special_tokens_map.json", names.file()});
  const SpecialTokens special = names.tokens();
  return make_bpe_tokenizer(std::move(parts), special, std::move(files), who);
}

}  // namespace

std::shared_ptr<Tokenizer> make_bpe_tokenizer(TokenizerParts parts, const SpecialTokens& special,
                                              std::vector<NamedFile> files, const std::string& who) {
  return std::make_shared<BpeTokenizer>(std::move(parts), special, std::move(files), who);
}

extern const TokenizerSpec bpe_spec;
const TokenizerSpec bpe_spec = {
    .name = "bpe",
    .help = "byte pair encoding of GPT-2, Llama, Qwen and others, from tokenizer.json or vocab.json and merges.txt",
    .from_file = from_path,
    .file = ".",
};

}  // namespace lineal
