#include "eval/questions.h"

#include <algorithm>
#include <optional>
#include <random>
#include <set>

#include "core/error.h"
#include "data/byte_stream.h"

namespace lineal {
namespace {

const std::vector<std::string> kContexts = {"context", "query", "question", "prompt", "input", "ctx", "goal"};
const std::vector<std::string> kChoices = {"choices", "endings", "options"};
const std::vector<std::string> kRight = {"gold", "label", "answer", "answerKey"};
const std::vector<std::string> kTargets = {"target", "answer", "completion"};

constexpr int kMostDepth = 64;

/// The first of the names that the record has.
const Json* first_of(const Json& record, const std::vector<std::string>& names, std::string* found = nullptr) {
  for (const auto& name : names) {
    if (!record.contains(name)) continue;
    if (found) *found = name;
    return &record[name];
  }
  return nullptr;
}

std::string joined(const std::vector<std::string>& names) {
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

std::string string_of(const Json& value, const std::string& name, const std::string& who) {
  if (!value.is_string()) fail(who, ": ", name, " is ", line_of(value), ", expected a string");
  return value.get<std::string>();
}

std::vector<std::string> strings_of(const Json& value, const std::string& name, const std::string& who) {
  if (!value.is_array() || value.empty()) fail(who, ": ", name, " is ", line_of(value), ", expected a list of strings");
  std::vector<std::string> list;
  for (const Json& item : value) list.push_back(string_of(item, name, who));
  return list;
}

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

/// A blank between context and choice, on the choice's side.
void join(Question& question) {
  size_t end = question.context.size();
  while (end > 0 && is_blank(question.context[end - 1])) --end;
  const std::string blanks = question.context.substr(end);
  question.context.resize(end);
  for (std::string& choice : question.choices) {
    const bool apart = !blanks.empty() || (!choice.empty() && is_blank(choice[0])) || question.context.empty();
    choice = (apart ? blanks : " ") + choice;
  }
}

/// Which of the choices a record's value names: their index, its text, or the choice.
size_t index_of(const Json& value, const std::vector<std::string>& choices, const std::vector<std::string>& labels,
                const std::string& name, const std::string& who) {
  if (value.is_number_integer()) {
    const auto index = value.get<int64_t>();
    if (index >= 0 && index < std::ssize(choices)) return static_cast<size_t>(index);
  } else if (value.is_string()) {
    const auto word = value.get<std::string>();
    for (const auto* list : {&labels, &choices}) {
      const auto found = std::find(list->begin(), list->end(), word);
      if (found != list->end()) return static_cast<size_t>(found - list->begin());
    }
    for (size_t i = 0; i < choices.size(); ++i) {
      if (word == std::to_string(i)) return i;
    }
  }
  fail(who, ": ", name, " is ", line_of(value), ", expected an index from 0 to ", choices.size() - 1,
       labels.empty() ? "" : ", a label", " or one of the choices");
}

std::string random_digits(std::mt19937_64& random, size_t n) {
  std::string digits;
  while (digits.size() < n) digits += static_cast<char>('0' + random() % 10);
  return digits;
}

int64_t length_of(const Tokenizer& tokenizer, const std::string& text) { return std::ssize(tokenizer.encode(text)); }

}  // namespace

Question read_question(const Json& record, const std::string& who) {
  if (!record.is_object()) fail(who, ": expected a JSON object, got ", record.type_name());
  std::string name;
  const Json* context = first_of(record, kContexts, &name);
  if (!context) fail(who, ": no context, expected one of ", joined(kContexts));
  Question question;
  question.context = string_of(*context, name, who);

  std::vector<std::string> labels;
  if (const Json* choices = first_of(record, kChoices, &name)) {
    if (choices->is_object()) {
      if (!choices->contains("text")) fail(who, ": ", name, " has no text, expected lists text and label");
      question.choices = strings_of((*choices)["text"], name + ".text", who);
      if (choices->contains("label")) labels = strings_of((*choices)["label"], name + ".label", who);
      if (!labels.empty() && labels.size() != question.choices.size()) {
        fail(who, ": ", name, " has ", question.choices.size(), " texts and ", labels.size(), " labels");
      }
    } else {
      question.choices = strings_of(*choices, name, who);
    }
  } else if (record.contains("sol1") && record.contains("sol2")) {
    for (const char* solution : {"sol1", "sol2"}) {
      question.choices.push_back(string_of(record[solution], solution, who));
    }
  }
  if (question.choices.empty()) {
    const Json* target = first_of(record, kTargets, &name);
    if (!target) fail(who, ": nothing to compare with, expected one of ", joined(kChoices), ", ", joined(kTargets));
    question.choices = {string_of(*target, name, who)};
  } else {
    const Json* right = first_of(record, kRight, &name);
    if (!right) fail(who, ": no right choice, expected one of ", joined(kRight));
    question.answer = index_of(*right, question.choices, labels, name, who);
    if (question.choices.size() < 2) fail(who, ": one choice, expected two at least (or a target)");
  }
  for (const auto& choice : question.choices) {
    if (std::all_of(choice.begin(), choice.end(), is_blank)) fail(who, ": an empty choice, expected text");
  }
  join(question);
  return question;
}

std::vector<Question> read_questions(const std::filesystem::path& path) {
  auto stream = open_bytes(path.string());
  if (path.extension() == ".gz") stream = decompress_gzip(std::move(stream), path.string());
  std::vector<Question> questions;
  int64_t number = 0;
  const auto add = [&](const std::string& line) {
    ++number;
    if (std::all_of(line.begin(), line.end(), is_blank)) return;
    const std::string who = text(path.string(), ":", number);
    const auto check = [&](int depth, Json::parse_event_t, const Json&) {
      if (depth > kMostDepth)
        fail(who, ": nests deeper than ", kMostDepth, ", expected an object of strings and lists");
      return true;
    };
    const Json record = Json::parse(line, check, /*allow_exceptions=*/false);
    if (record.is_discarded()) fail(who, ": no valid JSON; expected an object per line");
    questions.push_back(read_question(record, who));
    questions.back().group = path.filename().string();
  };
  std::string line, block(size_t{1} << 16, '\0');
  while (const size_t size = stream->read(block.data(), block.size())) {
    for (size_t from = 0; from < size;) {
      const size_t end = std::string_view(block).substr(0, size).find('\n', from);
      line.append(block, from, std::min(end, size) - from);
      if (end == std::string::npos) break;
      add(line);
      line.clear();
      from = end + 1;
    }
  }
  if (!line.empty()) add(line);
  if (questions.empty()) fail(path.string(), ": no questions, expected a JSON object per line");
  return questions;
}

Json to_record(const Question& question) {
  Json record = {{"context", question.context}};
  if (question.choices.size() > 1) {
    record["choices"] = question.choices, record["gold"] = question.answer;
  } else {
    record["target"] = question.right();
  }
  record["text"] = question.context + question.right();
  record["group"] = question.group;
  return record;
}

Question needle_question(const Tokenizer& tokenizer, const std::vector<int64_t>& hay, int64_t tokens, double depth,
                         uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::string key = random_digits(random, 5);
  const std::string needle = "\nThe pass key is " + key + ". Remember it.\n";
  const std::string request = "\nWhat is the pass key? The pass key is";
  const int64_t left = tokens - length_of(tokenizer, needle + request);
  if (left < 0 || hay.empty()) {
    fail("needle: length ", tokens, ", expected ", tokens - left, " tokens at least, and text to hide it in");
  }
  const auto n = static_cast<uint64_t>(hay.size());
  const uint64_t start = random() % n;
  const auto before = static_cast<int64_t>(depth * static_cast<double>(left));
  const auto part = [&](int64_t from, int64_t to) {
    std::vector<int64_t> ids;
    for (int64_t i = from; i < to; ++i) ids.push_back(hay[(start + static_cast<uint64_t>(i)) % n]);
    return tokenizer.decode(ids);
  };
  return {part(0, before) + needle + part(before, left) + request, {" " + key}, 0, ""};
}

Question recall_question(const Tokenizer& tokenizer, int64_t tokens, double depth, uint64_t seed) {
  std::mt19937_64 random(seed);
  constexpr size_t kLetters = 4;
  std::set<std::string> keys;
  std::vector<std::pair<std::string, std::string>> pairs;
  const auto draw = [&] {
    std::string key;
    do {
      key.clear();
      while (key.size() < kLetters) key += static_cast<char>('a' + random() % 26);
    } while (!keys.insert(key).second);
    pairs.emplace_back(key, random_digits(random, 2));
  };
  const auto line = [&](size_t i) { return pairs[i].first + " " + pairs[i].second + "\n"; };
  draw();
  int64_t used = length_of(tokenizer, line(0)) + length_of(tokenizer, pairs[0].first);  // with the request
  if (used > tokens) fail("recall: length ", tokens, ", expected ", used, " tokens at least");
  while (true) {
    draw();
    used += length_of(tokenizer, line(pairs.size() - 1));
    if (used > tokens) break;
  }
  pairs.pop_back();
  const auto last = static_cast<double>(pairs.size() - 1);
  const auto asked = static_cast<size_t>(depth * last + 0.5);
  std::string context;
  for (size_t i = 0; i < pairs.size(); ++i) context += line(i);
  return {context + pairs[asked].first, {" " + pairs[asked].second}, 0, ""};
}

}  // namespace lineal
