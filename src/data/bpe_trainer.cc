#include "data/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>

#include "core/error.h"
#include "data/unicode.h"

namespace lineal {
namespace {

using Pair = uint64_t;  // left id, right id

Pair packed(int32_t left, int32_t right) { return static_cast<Pair>(left) << 32 | static_cast<uint32_t>(right); }

struct Word {
  std::vector<int32_t> ids;
  int64_t count;
};

struct Candidate {
  int64_t count;
  Pair pair;
  bool operator<(const Candidate& other) const {  // the queue's first is the largest
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

/// How often each pair occurs, and in which words.
class Pairs {
 public:
  explicit Pairs(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t i = 0; i < words_.size(); ++i) {
      const auto& ids = words_[i].ids;
      for (size_t j = 0; j + 1 < ids.size(); ++j) change(packed(ids[j], ids[j + 1]), words_[i].count, i);
    }
    push_changed();
  }

  /// The most frequent pair, or a count of 0.
  Candidate pop() {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const auto found = places_.find(top.pair);
      if (found != places_.end() && found->second.count == top.count) return top;
    }
    return {0, 0};
  }

  void merge(Pair pair, int32_t id) {
    const auto left = static_cast<int32_t>(pair >> 32), right = static_cast<int32_t>(pair);
    std::vector<uint32_t> in = std::move(places_[pair].words);
    std::sort(in.begin(), in.end());
    in.erase(std::unique(in.begin(), in.end()), in.end());
    for (const uint32_t index : in) {
      Word& word = words_[index];
      auto& ids = word.ids;
      size_t size = 0;  // of what is kept
      for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] != left || i + 1 == ids.size() || ids[i + 1] != right) {
          ids[size++] = ids[i];
          continue;
        }
        if (size > 0) {
          change(packed(ids[size - 1], left), -word.count, index);
          change(packed(ids[size - 1], id), word.count, index);
        }
        if (i + 2 < ids.size()) {
          change(packed(right, ids[i + 2]), -word.count, index);
          change(packed(id, ids[i + 2]), word.count, index);
        }
        ids[size++] = id;
        ++i;
      }
      ids.resize(size);
    }
    places_.erase(pair);
    push_changed();
  }

 private:
  struct Places {
    int64_t count = 0;
    std::vector<uint32_t> words;  // those it is in, and some it has been in
  };

  void change(Pair pair, int64_t by, size_t word) {
    Places& places = places_[pair];
    places.count += by;
    if (by > 0 && (places.words.empty() || places.words.back() != word)) {
      places.words.push_back(static_cast<uint32_t>(word));
    }
    changed_.push_back(pair);
  }
  void push_changed() {
    std::sort(changed_.begin(), changed_.end());
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
    for (const Pair pair : changed_) {
      if (const auto found = places_.find(pair); found != places_.end() && found->second.count > 0) {
        queue_.push({found->second.count, pair});
      }
    }
    changed_.clear();
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, Places> places_;
  std::priority_queue<Candidate> queue_;  // some with counts of the past
  std::vector<Pair> changed_;
};

}  // namespace

void BpeTrainer::read(std::string_view text) {
  std::string key;
  pre_tokenizer_(text, [&](std::string_view word) {
    key = word;
    ++counts_[key];
  });
}

BpeModel BpeTrainer::train(int64_t vocabulary, const std::string& document,
                           const std::function<void(int64_t)>& progress) const {
  const int64_t least = 256 + (document.empty() ? 0 : 1);
  if (vocabulary < least) fail("byte_bpe: a vocabulary of ", vocabulary, " tokens, expected at least ", least);
  if (counts_.empty()) fail("byte_bpe: no text to learn from");
  BpeModel model;
  model.byte_level = true;
  std::unordered_map<std::string, int32_t> ids;
  const auto add = [&](const std::string& token) {
    const auto [found, added] = ids.emplace(token, static_cast<int32_t>(ids.size()));
    if (added) model.vocabulary.emplace_back(token, found->second);
    return found->second;
  };
  if (!document.empty()) add(document);
  auto characters = byte_characters();
  std::sort(characters.begin(), characters.end(),
            [](const std::string& a, const std::string& b) { return code_point(a) < code_point(b); });
  for (const std::string& character : characters) add(character);

  std::vector<Word> words;
  for (const auto& [word, count] : counts_) {
    words.push_back({{}, count});
    for (const char c : word) words.back().ids.push_back(ids.at(byte_characters()[static_cast<unsigned char>(c)]));
  }
  Pairs pairs(std::move(words));
  while (static_cast<int64_t>(ids.size()) < vocabulary) {
    const Candidate best = pairs.pop();
    if (best.count < 2) break;
    const auto& left = model.vocabulary[best.pair >> 32].first;
    const auto& right = model.vocabulary[best.pair & 0xFFFFFFFF].first;
    model.merges.emplace_back(left, right);
    pairs.merge(best.pair, add(left + right));
    if (progress) progress(static_cast<int64_t>(ids.size()));
  }
  return model;
}

std::string write_tokenizer_json(const BpeModel& model, const std::string& document) {
  using Json = nlohmann::ordered_json;
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  Json added = Json::array();
  if (!document.empty()) {
    added.push_back({{"id", 0},
                     {"content", document},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const auto special = [](const std::string& content) {
    return Json({{"SpecialToken", {{"id", content}, {"type_id", 0}}}});
  };
  const auto sequence = [](const char* id) { return Json({{"Sequence", {{"id", id}, {"type_id", 0}}}}); };
  Json behind;  // a text goes behind the document token, as it is learned
  if (!document.empty()) {
    behind = {{"type", "TemplateProcessing"},
              {"single", {special(document), sequence("A")}},
              {"pair", {special(document), sequence("A"), special(document), sequence("B")}},
              {"special_tokens", {{document, {{"id", document}, {"ids", {0}}, {"tokens", {document}}}}}}};
  }
  const Json head = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", added},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", byte_level},
                     {"post_processor", behind},
                     {"decoder", byte_level},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"ignore_merges", false}}}};
  // Json looks names up one by one, too slow for a vocabulary.
  std::string text = head.dump();
  text.resize(text.size() - 2);
  text += ",\n\"vocab\":{";
  const char* between = "\n";
  for (const auto& [token, id] : model.vocabulary) {
    text += between + Json(token).dump() + ":" + std::to_string(id);
    between = ",\n";
  }
  text += "},\n\"merges\":[";
  between = "\n";
  for (const auto& [left, right] : model.merges) {
    text += between + Json(left + " " + right).dump();
    between = ",\n";
  }
  return text + "]}}\n";
}

}  // namespace lineal
