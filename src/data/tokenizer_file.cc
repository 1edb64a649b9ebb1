#include "data/tokenizer_file.h"

#include <limits>

#include "core/error.h"
#include "data/unicode.h"

namespace lineal {
namespace {

constexpr size_t kMostDepth = 32;
constexpr int64_t kMostId = std::numeric_limits<int64_t>::max();

/// `value` on one line of bounded length, whatever a file holds.
std::string shown_value(const SortedJson& value) {
  if (value.is_string()) return shown(value.get_ref<const std::string&>());
  return value.is_object() ? "an object" : value.is_array() ? "an array" : value.dump();
}

/// Builds what a file holds, but for a vocabulary and merges, which go into a BpeModel at once.
class TokenizerReader : public nlohmann::json_sax<SortedJson> {
 public:
  /// `vocabulary`: the whole file is one, else "model" holds it.
  TokenizerReader(const std::string& who, BpeModel& model, bool vocabulary)
      : who_(who), model_(model), whole_vocabulary_(vocabulary) {}

  SortedJson read(std::string_view bytes) {
    SortedJson::sax_parse(bytes.begin(), bytes.end(), this);
    return std::move(root_);
  }

  bool null() override { return value(nullptr); }
  bool boolean(bool found) override { return value(found); }
  bool number_integer(number_integer_t found) override { return value(found); }
  bool number_unsigned(number_unsigned_t found) override { return value(found); }
  bool number_float(number_float_t found, const string_t&) override { return value(found); }
  bool string(string_t& found) override { return value(std::move(found)); }
  bool binary(binary_t&) override { return false; }

  bool start_object(std::size_t) override {
    if (state_ != State::plain) refuse_item("an object");
    if (open_.empty() ? whole_vocabulary_ : at("vocab")) {
      state_ = State::vocabulary;
      return true;
    }
    return open(SortedJson::object());
  }
  bool key(string_t& name) override {
    key_ = std::move(name);
    if (state_ == State::plain && open_.back()->contains(key_)) fail(who_, ": names ", shown(key_), " twice");
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override {
    if (state_ == State::merges) {
      state_ = State::pair;
      return true;
    }
    if (state_ != State::plain) refuse_item("an array");
    if (at("merges")) {
      state_ = State::merges;
      return true;
    }
    return open(SortedJson::array());
  }
  bool end_array() override {
    if (state_ != State::pair) return close();
    if (pair_.size() != 2) refuse_item(text(pair_.size(), " strings"));
    model_.merges.emplace_back(std::move(pair_[0]), std::move(pair_[1]));
    pair_.clear();
    state_ = State::merges;
    return true;
  }
  bool parse_error(std::size_t byte, const std::string&, const nlohmann::detail::exception&) override {
    fail(who_, ": not JSON, or a number out of range, at byte ", byte);
  }

 private:
  enum class State { plain, vocabulary, merges, pair };

  /// Whether what comes next is model.NAME.
  bool at(const char* name) const { return open_.size() == 2 && path_ == "model" && key_ == name; }

  [[noreturn]] void refuse_item(const std::string& found) const {
    if (state_ == State::vocabulary) {
      fail(who_, ": token ", shown(key_), " has id ", found, ", expected an integer from 0");
    }
    fail(who_, ": merge ", model_.merges.size(), " is ", found, ", expected a string or an array of two");
  }

  template <class T>
  bool value(T&& found) {
    if (state_ == State::plain) {
      add(std::forward<T>(found));
      return true;
    }
    SortedJson json = std::forward<T>(found);
    if (state_ == State::vocabulary) {
      const bool small = json.is_number_unsigned() && json.template get<uint64_t>() <= uint64_t{kMostId};
      if (!small) refuse_item(shown_value(json));
      model_.vocabulary.emplace_back(std::move(key_), json.template get<int64_t>());
    } else {
      if (!json.is_string() || pair_.size() > 2) refuse_item(shown_value(json));
      auto& line = json.template get_ref<std::string&>();
      if (state_ == State::pair) {
        pair_.push_back(std::move(line));
      } else if (!is_version(line)) {
        model_.merges.push_back(split_merge(line, model_.merges.size(), who_));
      }
    }
    return true;
  }

  SortedJson& add(SortedJson found) {
    if (open_.empty()) return root_ = std::move(found);
    SortedJson& parent = *open_.back();
    if (parent.is_object()) return parent[key_] = std::move(found);
    parent.push_back(std::move(found));
    return parent.back();
  }
  bool open(SortedJson found) {
    if (open_.size() >= kMostDepth) fail(who_, ": nests deeper than ", kMostDepth);
    if (open_.size() == 1) path_ = open_[0]->is_object() ? key_ : "";
    open_.push_back(&add(std::move(found)));
    return true;
  }
  bool close() {
    if (state_ == State::plain) open_.pop_back();
    state_ = State::plain;
    return true;
  }

  const std::string& who_;
  BpeModel& model_;
  bool whole_vocabulary_;
  State state_ = State::plain;
  SortedJson root_;
  std::vector<SortedJson*> open_;  // arrays and objects that have not ended
  std::string key_, path_;         // path_: the name of the outermost object's member that is open
  std::vector<std::string> pair_;
};

}  // namespace

std::pair<std::string, std::string> split_merge(const std::string& line, size_t rank, const std::string& who) {
  const size_t blank = line.find(' ');
  if (blank == line.npos || line.find(' ', blank + 1) != line.npos) {
    fail(who, ": merge ", rank, " is ", shown(line), ", expected two tokens and a blank between them");
  }
  return {line.substr(0, blank), line.substr(blank + 1)};
}

bool is_version(const std::string& line) { return line.starts_with("#version"); }

SortedJson read_tokenizer_file(std::string_view bytes, const std::string& who, BpeModel& model) {
  return TokenizerReader(who, model, /*vocabulary=*/false).read(bytes);
}

bool read_vocabulary_file(std::string_view bytes, const std::string& who, BpeModel& model) {
  return TokenizerReader(who, model, /*vocabulary=*/true).read(bytes).is_null();
}

void TokenizerNode::refuse(const std::string& expected) const {
  fail(who_, ": ", path_.empty() ? "the file" : path_, " is ", shown_value(json_), ", expected ", expected);
}

TokenizerNode TokenizerNode::at(const std::string& name) const {
  static const SortedJson null;
  if (!json_.is_object()) refuse("an object");
  const auto found = json_.find(name);
  return {found == json_.end() ? null : *found, who_, path_.empty() ? name : path_ + "." + name};
}

std::vector<TokenizerNode> TokenizerNode::items() const {
  if (!json_.is_array()) refuse("an array");
  std::vector<TokenizerNode> list;
  for (const SortedJson& item : json_) list.emplace_back(item, who_, text(path_, "[", list.size(), "]"));
  return list;
}

std::vector<std::pair<std::string, TokenizerNode>> TokenizerNode::members() const {
  if (!json_.is_object()) refuse("an object");
  std::vector<std::pair<std::string, TokenizerNode>> list;
  for (const auto& [name, value] : json_.items())
    list.emplace_back(name, TokenizerNode(value, who_, path_ + "." + name));
  return list;
}

std::string TokenizerNode::string() const {
  if (!json_.is_string()) refuse("a string");
  return json_.get<std::string>();
}

bool TokenizerNode::flag(bool otherwise) const {
  if (json_.is_null()) return otherwise;
  if (!json_.is_boolean()) refuse("true or false");
  return json_.get<bool>();
}

int64_t TokenizerNode::count(int64_t most) const {
  if (!json_.is_number_unsigned() || json_.get<uint64_t>() > static_cast<uint64_t>(most)) {
    refuse(text("an integer from 0 to ", most));
  }
  return json_.get<int64_t>();
}

std::string TokenizerNode::name() const {
  if (json_.is_object() && json_.contains("content")) return at("content").name();
  if (json_.is_array() && !json_.empty()) return TokenizerNode(json_[0], who_, path_).name();
  if (json_.is_number_unsigned()) return text(json_.get<uint64_t>());
  return json_.is_string() ? json_.get<std::string>() : "";
}

}  // namespace lineal
