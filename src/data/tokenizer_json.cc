#include "data/tokenizer_json.h"

#include <algorithm>
#include <limits>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "data/tokenizer_file.h"
#include "data/unicode.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostParts = 64;   // normalizers, pre-tokenizers, decoders
constexpr size_t kMostGrowth = 64;  // of a token's bytes by replacements
constexpr int64_t kMostInteger = std::numeric_limits<int64_t>::max();

constexpr const char* kQwen2Words =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
    "|\\s+(?!\\S)|\\s+";

// Punctuation as that library has it: ASCII's, and that of Unicode 8.
constexpr const char* kPunctuation =
    "[\\p{P}\\x{166D}\\x{111C9}$+<=>^`|~&&[^"
    "\\x{61D}\\x{9FD}\\x{A76}\\x{C77}\\x{C84}\\x{1B4E}-\\x{1B4F}\\x{1B7D}-\\x{1B7F}\\x{2E43}-\\x{2E4F}"
    "\\x{2E52}-\\x{2E5D}\\x{2E60}-\\x{2E63}\\x{10D6E}\\x{10EAD}\\x{10ED0}\\x{10F55}-\\x{10F59}"
    "\\x{10F86}-\\x{10F89}\\x{113D4}-\\x{113D5}\\x{113D7}-\\x{113D8}\\x{1144B}-\\x{1144F}\\x{1145A}-\\x{1145B}"
    "\\x{1145D}\\x{11660}-\\x{1166C}\\x{116B9}\\x{1183B}\\x{11944}-\\x{11946}\\x{119E2}\\x{11A3F}-\\x{11A46}"
    "\\x{11A9A}-\\x{11A9C}\\x{11A9E}-\\x{11AA2}\\x{11B00}-\\x{11B09}\\x{11BE1}\\x{11C41}-\\x{11C45}"
    "\\x{11C70}-\\x{11C71}\\x{11EF7}-\\x{11EF8}\\x{11F43}-\\x{11F4F}\\x{11FFF}\\x{12FF1}-\\x{12FF2}"
    "\\x{16D6D}-\\x{16D6F}\\x{16E97}-\\x{16E9A}\\x{16FE2}\\x{1E5FF}\\x{1E95E}-\\x{1E95F}"
    "]]";

/// A normalizer's, pre-tokenizer's or decoder's steps: those of a Sequence, of Sequences in it too.
void flatten(const TokenizerNode& node, const char* list, std::vector<TokenizerNode>& steps) {
  if (node.is_null()) return;
  if (node.at("type").string() != "Sequence") {
    steps.push_back(node);
  } else {
    for (const TokenizerNode& item : node.at(list).items()) flatten(item, list, steps);
  }
  if (steps.size() > kMostParts) fail(node.where(), " has more than ", kMostParts, " steps");
}

std::vector<TokenizerNode> steps_of(const TokenizerNode& node, const char* list) {
  std::vector<TokenizerNode> steps;
  flatten(node, list, steps);
  return steps;
}

Pattern read_pattern(const TokenizerNode& node) {
  const TokenizerNode literal = node.at("String"), regex = node.at("Regex");
  if (!literal.is_null()) return Pattern::literal(literal.string(), literal.where());
  if (!regex.is_null()) return {regex.string(), regex.where()};
  node.refuse("{\"String\": ...} or {\"Regex\": ...}");
}

Behavior read_behavior(const TokenizerNode& node) {
  const std::string name = node.string();
  if (name == "Isolated") return Behavior::isolated;
  if (name == "Removed") return Behavior::removed;
  if (name == "Contiguous") return Behavior::contiguous;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  node.refuse("Isolated, Removed, Contiguous, MergedWithPrevious or MergedWithNext");
}

Normalizer read_normalizer(const TokenizerNode& node) {
  const std::string type = node.at("type").string();
  const auto form = [](NormalForm which) {
    return [which](const std::string& text) { return normalize(text, which); };
  };
  if (type == "NFC") return form(NormalForm::nfc);
  if (type == "NFD") return form(NormalForm::nfd);
  if (type == "NFKC") return form(NormalForm::nfkc);
  if (type == "NFKD") return form(NormalForm::nfkd);
  if (type == "Lowercase") return [](const std::string& text) { return lower_case(text); };
  if (type == "Prepend") {
    return
        [prefix = node.at("prepend").string()](const std::string& text) { return text.empty() ? text : prefix + text; };
  }
  if (type == "Replace") return replace(read_pattern(node.at("pattern")), node.at("content").string());
  if (type == "Strip") {
    return strip(node.at("strip_left").flag(false), node.at("strip_right").flag(false));
  }
  node.at("type").refuse("NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip or Sequence");
}

struct Metaspace {
  std::string replacement;
  std::string prepend;
};

Metaspace read_metaspace(const TokenizerNode& node) {
  Metaspace result = {node.at("replacement").string(), "always"};
  if (character_size(result.replacement, 0) != result.replacement.size() || result.replacement.empty()) {
    node.at("replacement").refuse("one character");
  }
  const TokenizerNode scheme = node.at("prepend_scheme");
  if (!scheme.is_null()) {
    result.prepend = scheme.string();
  } else if (!node.at("add_prefix_space").flag(true)) {
    result.prepend = "never";
  }
  if (result.prepend != "always" && result.prepend != "first" && result.prepend != "never") {
    scheme.refuse("always, first or never");
  }
  return result;
}

/// One step; `later`: for a text that an added token precedes.
PreTokenizer read_pre_tokenizer(const TokenizerNode& node, bool later, bool is_first_step) {
  const std::string type = node.at("type").string();
  const auto pattern = [&](const char* source) { return Pattern(source, node.where()); };
  if (type == "ByteLevel") {
    return byte_level(node.at("add_prefix_space").flag(true), node.at("use_regex").flag(true));
  }
  if (type == "Split") {
    return split(read_pattern(node.at("pattern")), read_behavior(node.at("behavior")), node.at("invert").flag(false));
  }
  if (type == "Digits") {
    const bool each = node.at("individual_digits").flag(false);
    return split(pattern("\\p{N}"), each ? Behavior::isolated : Behavior::contiguous, false);
  }
  if (type == "Punctuation") {
    const TokenizerNode behavior = node.at("behavior");
    return split(pattern(kPunctuation), behavior.is_null() ? Behavior::isolated : read_behavior(behavior), false);
  }
  if (type == "Whitespace")
    return split(Pattern(text("[", kWordClass, "]+|[^", kWordClass, "\\s]+"), node.where()), Behavior::removed, true);
  if (type == "WhitespaceSplit") return split(pattern("\\s"), Behavior::removed, false);
  if (type == "Metaspace") {
    const Metaspace found = read_metaspace(node);
    if (found.prepend == "first" && !is_first_step) {
      node.at("prepend_scheme").refuse("always or never, but for the first step");
    }
    const bool prepend = found.prepend == "always" || (found.prepend == "first" && !later);
    return metaspace(found.replacement, prepend, node.at("split").flag(true));
  }
  node.at("type").refuse("ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace or Sequence");
}

/// Returns whether its words are bytes.
bool read_pre_tokenizers(const TokenizerNode& node, TokenizerParts& parts) {
  const std::vector<TokenizerNode> steps = steps_of(node, "pretokenizers");
  const auto is_byte_level = [](const TokenizerNode& step) { return step.at("type").string() == "ByteLevel"; };
  const auto found = std::count_if(steps.begin(), steps.end(), is_byte_level);
  if (found > 1) fail(node.where(), " has ByteLevel ", found, " times, expected once");
  // What it adds after ByteLevel stands for no byte.
  const auto first = std::find_if(steps.begin(), steps.end(), is_byte_level);
  const auto is_metaspace = [](const TokenizerNode& step) { return step.at("type").string() == "Metaspace"; };
  const auto after = std::find_if(first, steps.end(), is_metaspace);
  if (after != steps.end()) after->at("type").refuse("Metaspace before ByteLevel");
  for (const bool later : {false, true}) {
    std::vector<PreTokenizer> list;
    bool characters = false;
    for (size_t i = 0; i < steps.size(); ++i) {
      list.push_back(read_pre_tokenizer(steps[i], later, i == 0));
      if (!is_byte_level(steps[i]) || i + 1 == steps.size()) continue;
      list.push_back(to_byte_characters());  // that is what the steps after it see
      characters = true;
    }
    if (characters) list.push_back(from_byte_characters());
    (later ? parts.later : parts.first) = sequence(std::move(list));
  }
  return found > 0;
}

void read_decoder(const TokenizerNode& node, TokenDecoder& decoder) {
  bool fused = false;
  for (const TokenizerNode& step : steps_of(node, "decoders")) {
    const std::string type = step.at("type").string();
    if (type == "ByteLevel") {
      decoder.byte_level = true;
    } else if (type == "ByteFallback") {
      decoder.byte_fallback = true;
    } else if (type == "Fuse") {
      fused = true;
    } else if (type == "Replace") {
      const TokenizerNode from = step.at("pattern").at("String");
      if (from.is_null()) step.at("pattern").refuse("{\"String\": ...}");
      if (from.string().empty()) from.refuse("some text");
      decoder.replacements.emplace_back(from.string(), step.at("content").string());
    } else if (type == "Strip") {
      if (!fused) step.at("type").refuse("Strip after Fuse");
      decoder.strip = step.at("content").string();
      if (decoder.strip.empty()) step.at("content").refuse("a character");
      decoder.strip_count = step.at("start").count(kMostInteger);
      if (step.at("stop").count(kMostInteger) != 0) step.at("stop").refuse("0");
    } else if (type == "Metaspace") {
      const Metaspace found = read_metaspace(step);
      decoder.replacements.emplace_back(found.replacement, " ");
      if (found.prepend != "never") decoder.strip = " ", decoder.strip_count = 1;
    } else {
      step.at("type").refuse("ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace or Sequence");
    }
  }
  if (decoder.byte_level && (decoder.byte_fallback || !decoder.replacements.empty())) {
    fail(node.where(), " has ByteLevel with other decoders, expected it alone");
  }
}

AddedToken read_added(const TokenizerNode& node, int64_t id) {
  AddedToken token;
  token.content = node.at("content").string();
  token.id = id;
  token.single_word = node.at("single_word").flag(false);
  token.lstrip = node.at("lstrip").flag(false);
  token.rstrip = node.at("rstrip").flag(false);
  token.special = node.at("special").flag(false);
  token.normalized = node.at("normalized").flag(!token.special);
  return token;
}

void read_model(const TokenizerNode& node, BpeModel& model) {
  const TokenizerNode type = node.at("type");
  if (type.is_null() ? model.merges.empty() : type.string() != "BPE") {
    type.refuse("BPE; a model of SentencePiece's is read by --tokenizer sentencepiece from its tokenizer.model");
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const TokenizerNode affix = node.at(name);
    if (!affix.is_null() && !affix.string().empty()) affix.refuse("null or an empty string");
  }
  const TokenizerNode dropout = node.at("dropout");
  if (!dropout.is_null() && !dropout.is_zero()) dropout.refuse("null: without chance");
  const TokenizerNode unknown = node.at("unk_token");
  if (!unknown.is_null()) model.unknown = unknown.string();
  model.fuse_unknown = node.at("fuse_unk").flag(false);
  model.byte_fallback = node.at("byte_fallback").flag(false);
  model.ignore_merges = node.at("ignore_merges").flag(false);
  for (const char* name : {"vocab", "merges"}) {
    const TokenizerNode found = node.at(name);  // there only if it is of another type
    if (!found.is_null()) found.refuse(name[0] == 'v' ? "an object of tokens and ids" : "an array");
  }
}

SortedJson read_json(const fs::path& file) {
  BpeModel unused;
  const std::string who = file.string();
  return read_tokenizer_file(read_file(file), who, unused);
}

/// The content of the special token that the first of these processors puts before a single text; "": none.
std::string first_token(const TokenizerNode& processor) {
  if (processor.is_null()) return "";
  if (const TokenizerNode several = processor.at("processors"); !several.is_null()) {
    for (const TokenizerNode& one : several.items()) {
      if (const std::string found = first_token(one); !found.empty()) return found;
    }
  }
  const TokenizerNode single = processor.at("single");
  const auto pieces = single.is_null() ? std::vector<TokenizerNode>() : single.items();
  if (pieces.empty()) return "";
  const TokenizerNode token = pieces[0].at("SpecialToken");
  return token.is_null() ? "" : token.at("id").string();
}

}  // namespace

std::string TokenDecoder::bytes(const std::string& token) const {
  if (byte_level) return bytes_of_characters(token).value_or(token);
  const auto digit = [](char c) {
    const char low = static_cast<char>(c | 0x20);
    return c >= '0' && c <= '9' ? c - '0' : low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
  };
  if (byte_fallback && token.size() == 6 && token.starts_with("<0x") && token[5] == '>' && digit(token[3]) >= 0 &&
      digit(token[4]) >= 0) {
    return std::string(1, static_cast<char>(digit(token[3]) * 16 + digit(token[4])));
  }
  std::string result = token;
  for (const auto& [from, to] : replacements) {
    for (size_t at = 0; (at = result.find(from, at)) != result.npos; at += to.size()) {
      result.replace(at, from.size(), to);
      if (result.size() > kMostGrowth * token.size())
        fail("decoder: token ", shown(token), " grows to ", result.size(), " bytes");
    }
  }
  return result;
}

TokenizerParts read_tokenizer_json(std::string_view bytes, const std::string& who) {
  TokenizerParts parts;
  const SortedJson json = read_tokenizer_file(bytes, who, parts.model);
  const TokenizerNode root(json, who, "");
  if (root.at("model").is_null()) fail(who, ": has no model, expected a tokenizer.json of the tokenizers library");
  read_model(root.at("model"), parts.model);
  for (const TokenizerNode& step : steps_of(root.at("normalizer"), "normalizers")) {
    parts.normalizers.push_back(read_normalizer(step));
  }
  parts.model.byte_level = read_pre_tokenizers(root.at("pre_tokenizer"), parts);
  const TokenizerNode decoder = root.at("decoder");
  if (decoder.is_null() && !parts.model.byte_level) decoder.refuse("a decoder");
  read_decoder(decoder, parts.decoder);
  if (decoder.is_null()) parts.decoder.byte_level = true;
  parts.first_token = first_token(root.at("post_processor"));
  const TokenizerNode added = root.at("added_tokens");
  if (added.is_null()) return parts;
  for (const TokenizerNode& token : added.items())
    parts.added.push_back(read_added(token, token.at("id").count(kMostInteger)));
  return parts;
}

TokenizerParts read_vocab_and_merges(const fs::path& folder) {
  TokenizerParts parts;
  BpeModel& model = parts.model;
  const std::string vocabulary = (folder / "vocab.json").string(), merges = (folder / "merges.txt").string();
  if (!read_vocabulary_file(read_file(vocabulary), vocabulary, model) || model.vocabulary.empty()) {
    fail(vocabulary, ": expected an object of tokens and ids");
  }
  const std::string lines = read_file(merges);
  for (size_t at = 0, end; at < lines.size(); at = end + 1) {
    end = std::min(lines.find('\n', at), lines.size());
    std::string line = lines.substr(at, end - at);
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty() && !is_version(line)) model.merges.push_back(split_merge(line, model.merges.size(), merges));
  }
  model.byte_level = true;
  parts.decoder.byte_level = true;

  const fs::path config = folder / "tokenizer_config.json", more = folder / "added_tokens.json";
  bool prefix = false, qwen2 = false;
  if (fs::exists(config)) {
    const SortedJson json = read_json(config);
    const TokenizerNode root(json, config.string(), "");
    if (root.at("add_bos_token").flag(false)) parts.first_token = root.at("bos_token").name();
    prefix = root.at("add_prefix_space").flag(false);
    qwen2 = root.at("tokenizer_class").name().starts_with("Qwen2");
    const TokenizerNode added = root.at("added_tokens_decoder");
    if (!added.is_null()) {
      for (const auto& [id, token] : added.members()) {
        if (id.empty() || id.size() > 10 || id.find_first_not_of("0123456789") != id.npos) {
          token.refuse("the name of a member to be an id");
        }
        parts.added.push_back(read_added(token, std::stoll(id)));
      }
    }
  }
  if (fs::exists(more)) {
    BpeModel added;
    const std::string who = more.string();
    if (!read_vocabulary_file(read_file(more), who, added)) fail(who, ": expected an object of tokens and ids");
    std::set<std::string> known;
    for (const AddedToken& token : parts.added) known.insert(token.content);
    for (const auto& [content, id] : added.vocabulary) {
      if (known.insert(content).second) parts.added.push_back({.content = content, .id = id});
    }
  }
  PreTokenizer words = byte_level(prefix, !qwen2);
  if (qwen2) {
    parts.normalizers.push_back([](const std::string& text) { return normalize(text, NormalForm::nfc); });
    words = sequence({split(Pattern(kQwen2Words, vocabulary), Behavior::isolated, false), std::move(words)});
  }
  parts.first = parts.later = words;
  return parts;
}

std::vector<std::pair<std::string, std::string>> read_names(const fs::path& file) {
  std::vector<std::pair<std::string, std::string>> names;
  if (!fs::exists(file)) return names;
  const SortedJson json = read_json(file);
  for (const auto& [name, value] : TokenizerNode(json, file.string(), "").members())
    names.emplace_back(name, value.name());
  return names;
}

}  // namespace lineal
