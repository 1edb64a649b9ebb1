#include "data/bpe.h"

#include <algorithm>
#include <queue>

#include "core/error.h"
#include "data/unicode.h"

namespace lineal {
namespace {

constexpr size_t kMostCached = 1 << 17;  // words
constexpr size_t kLongestCached = 64;    // bytes
constexpr std::string_view kBlank = "\xe2\x96\x81";

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

/// Whether a blank follows another character than a blank.
bool blank_inside(std::string_view token) {
  for (size_t at = token.find(kBlank, 1); at != token.npos; at = token.find(kBlank, at + 1)) {
    if (at < kBlank.size() || token.substr(at - kBlank.size(), kBlank.size()) != kBlank) return true;
  }
  return false;
}

}  // namespace

const std::array<std::string, 256>& byte_characters() {
  static const auto characters = [] {
    std::array<std::string, 256> list;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      append_utf8(list[byte], printable ? byte : next++);
    }
    return list;
  }();
  return characters;
}

std::optional<std::string> bytes_of_characters(std::string_view text) {
  static const auto bytes = [] {
    std::array<int, 0x180> table;
    table.fill(-1);
    for (size_t byte = 0; byte < 256; ++byte) table[code_point(byte_characters()[byte])] = static_cast<int>(byte);
    return table;
  }();
  std::string result;
  for (size_t at = 0, size; at < text.size(); at += size) {
    size = character_size(text, at);
    if (size == 0) return {};
    const char32_t point = code_point(text.substr(at, size));
    if (point >= bytes.size() || bytes[point] < 0) return {};
    result += static_cast<char>(bytes[point]);
  }
  return result;
}

Bpe::Bpe(const BpeModel& model, const std::string& who)
    : who_(who),
      fuse_unknown_(model.fuse_unknown),
      byte_fallback_(model.byte_fallback),
      ignore_merges_(model.ignore_merges),
      byte_level_(model.byte_level) {
  const auto count = static_cast<int64_t>(model.vocabulary.size());
  if (count == 0) fail(who, ": the vocabulary is empty");
  // Published vocabularies have holes, but few.
  const int64_t most = std::min<int64_t>(2 * count + 1024, int64_t{1} << 30);
  std::vector<const std::string*> tokens(static_cast<size_t>(most), nullptr);
  for (const auto& [token, id] : model.vocabulary) {
    if (id < 0 || id >= most) {
      fail(who, ": token ", shown(token), " has id ", id, ", expected 0 to ", most - 1, " for ", count, " tokens");
    }
    const std::string*& holder = tokens[static_cast<size_t>(id)];
    if (holder) fail(who, ": tokens ", shown(*holder), " and ", shown(token), " both have id ", id);
    holder = &token;
    if (!ids_.emplace(token, static_cast<int32_t>(id)).second) fail(who, ": token ", shown(token), " is there twice");
    size_ = std::max(size_, id + 1);
    if (!ignore_merges_) continue;
    const auto word = byte_level_ ? bytes_of_characters(token) : token;
    if (word) words_.emplace(*word, static_cast<int32_t>(id));
  }
  const auto id_of = [&](const std::string& token, const auto&... what) {
    const auto found = ids_.find(token);
    if (found == ids_.end()) fail(who, ": ", what..., shown(token), ", which is not in the vocabulary");
    return found->second;
  };
  if (model.unknown) unknown_ = id_of(*model.unknown, "the unknown token is ");
  merges_.reserve(model.merges.size());
  for (size_t rank = 0; rank < model.merges.size(); ++rank) {
    const auto& [left, right] = model.merges[rank];
    const uint64_t pair = pair_of(id_of(left, "merge ", rank, " is of "), id_of(right, "merge ", rank, " is of "));
    const std::string both = left + right;
    merges_[pair] = {static_cast<int32_t>(rank), id_of(both, "merge ", rank, " makes ")};
    if (words_begin_with_blanks_ && blank_inside(both)) words_begin_with_blanks_ = false;
  }
  // Nor may what the vocabulary lacks be joined or dropped across the cut.
  if (byte_level_ || ignore_merges_ || !ids_.contains(std::string(kBlank))) words_begin_with_blanks_ = false;
  if (byte_level_) {
    for (size_t byte = 0; byte < 256; ++byte) bytes_[byte] = initial(byte_characters()[byte]);
  }
}

std::optional<int64_t> Bpe::find(const std::string& token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return {};
  return found->second;
}

Bpe::Initial Bpe::initial(const std::string& symbol) const {
  if (const auto found = ids_.find(symbol); found != ids_.end()) return {Initial::token, {found->second}};
  if (!byte_fallback_) return {Initial::unknown, {}};
  Initial result = {Initial::bytes, {}};
  for (const char c : symbol) {
    constexpr const char* kDigits = "0123456789ABCDEF";
    const auto byte = static_cast<unsigned char>(c);
    const auto found = ids_.find(std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + ">");
    if (found == ids_.end()) return {Initial::unknown, {}};
    result.ids.push_back(found->second);
  }
  return result;
}

std::vector<int32_t> Bpe::symbols(std::string_view word) const {
  std::vector<int32_t> ids;
  ids.reserve(word.size());
  bool unknown = false;  // one is waiting; bytes' tokens pass it, as in the tokenizers library
  const auto flush = [&] {
    if (unknown) ids.push_back(*unknown_);
    unknown = false;
  };
  const auto add = [&](const Initial& symbol) {
    if (symbol.kind == Initial::token || (symbol.kind == Initial::unknown && !fuse_unknown_)) flush();
    if (symbol.kind == Initial::unknown) unknown = unknown_.has_value();
    ids.insert(ids.end(), symbol.ids.begin(), symbol.ids.end());
  };
  if (byte_level_) {
    for (const char c : word) add(bytes_[static_cast<unsigned char>(c)]);
  } else {
    std::string character;
    for (size_t at = 0; at < word.size(); at += character.size()) {
      character = word.substr(at, std::max<size_t>(character_size(word, at), 1));
      add(initial(character));
    }
  }
  flush();
  return ids;
}

void Bpe::merge(std::vector<int32_t>& symbols) const {
  struct Symbol {
    int32_t id;
    int64_t previous, next;  // -1: none
    bool merged = false;     // into the one before it
  };
  struct Candidate {
    int32_t rank, id;
    int64_t at;
    bool operator<(const Candidate& other) const {  // the queue's first is the largest
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto n = static_cast<int64_t>(symbols.size());
  if (n < 2) return;
  std::vector<Symbol> list(symbols.size());
  std::vector<Candidate> candidates;
  const auto merge_of = [&](int64_t left, int64_t right) {
    const auto found = merges_.find(pair_of(list[static_cast<size_t>(left)].id, list[static_cast<size_t>(right)].id));
    return found == merges_.end() ? nullptr : &found->second;
  };
  for (int64_t i = 0; i < n; ++i) list[static_cast<size_t>(i)] = {symbols[static_cast<size_t>(i)], i - 1, i + 1};
  list.back().next = -1;
  for (int64_t i = 0; i + 1 < n; ++i) {
    if (const Merge* merge = merge_of(i, i + 1)) candidates.push_back({merge->rank, merge->id, i});
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(candidates));
  const auto push = [&](int64_t left, int64_t right) {
    if (left < 0 || right < 0) return;
    if (const Merge* merge = merge_of(left, right)) queue.push({merge->rank, merge->id, left});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = list[static_cast<size_t>(top.at)];
    if (left.merged || left.next < 0) continue;
    Symbol& right = list[static_cast<size_t>(left.next)];
    const Merge* found = merge_of(top.at, left.next);
    if (!found || found->id != top.id) continue;  // its symbols have changed since
    left.id = top.id;
    left.next = right.next;
    right.merged = true;
    if (left.next >= 0) list[static_cast<size_t>(left.next)].previous = top.at;
    push(left.previous, top.at);
    push(top.at, left.next);
  }
  symbols.clear();
  for (const Symbol& symbol : list) {
    if (!symbol.merged) symbols.push_back(symbol.id);
  }
}

void Bpe::merge_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto found = words_.find(std::string(word)); found != words_.end()) {
      ids = {found->second};
      return;
    }
  }
  ids = symbols(word);
  merge(ids);
}

void Bpe::encode(std::string_view word, std::vector<int64_t>& ids) const {
  const std::unique_lock lock(cache_->mutex, std::try_to_lock);
  std::vector<int32_t> found;
  if (!lock.owns_lock() || word.size() > kLongestCached) {
    merge_word(word, found);
    ids.insert(ids.end(), found.begin(), found.end());
    return;
  }
  auto& words = cache_->words;
  const std::string key(word);
  auto at = words.find(key);
  if (at == words.end()) {
    merge_word(word, found);
    if (words.size() >= kMostCached) words.clear();
    at = words.emplace(key, std::move(found)).first;
  }
  ids.insert(ids.end(), at->second.begin(), at->second.end());
}

}  // namespace lineal
