#include "eval/task.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace lineal {
namespace {

constexpr size_t kTogether = 16;  // choices read at once

bool begins_with(const std::vector<int64_t>& ids, const std::vector<int64_t>& prefix) {
  return ids.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), ids.begin());
}

std::string stripped(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

size_t least(const std::vector<double>& values) {
  return static_cast<size_t>(std::min_element(values.begin(), values.end()) - values.begin());
}

}  // namespace

size_t Answer::likeliest() const { return least(nats); }

size_t Answer::likeliest_per(const std::vector<int64_t>& sizes) const {
  std::vector<double> shares;
  for (size_t i = 0; i < nats.size(); ++i) shares.push_back(nats[i] / static_cast<double>(sizes[i]));
  return least(shares);
}

std::optional<double> Share::error() const {
  if (of < 2) return {};
  return std::sqrt(value() * (1 - value()) / static_cast<double>(of - 1));
}

void TaskScores::add(const Question& question, const Answer& answer) {
  if (question.choices.size() > 1) {
    accuracy.add(answer.likeliest() == question.answer);
    accuracy_per_character.add(answer.likeliest_per(answer.characters) == question.answer);
    accuracy_per_byte.add(answer.likeliest_per(answer.bytes) == question.answer);
  } else {
    exact_match.add(stripped(answer.written) == stripped(question.right()));
    greedy.add(answer.greedy);
  }
  loss.nats += answer.nats[question.answer];
  loss.tokens += answer.tokens;
}

double TaskScores::perplexity() const { return std::exp(loss.mean()); }

Examiner::Examiner(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, const TaskOptions& options)
    : model_(std::move(model)), tokenizer_(tokenizer), options_(options) {
  if (options.chunk < 1) fail("eval: chunk is ", options.chunk, ", expected at least 1");
  if (options.shots < 0) fail("eval: shots is ", options.shots, ", expected at least 0");
  if (options.max_tokens < 1) fail("eval: max tokens is ", options.max_tokens, ", expected at least 1");
  const at::NoGradGuard no_grad;
  nothing_.state = model_->initial_state(1);
  introduced_ = nothing_;
}

std::vector<int64_t> Examiner::encode(const std::string& text, bool after_begin) const {
  std::vector<int64_t> ids = tokenizer_.encode(text);
  const SpecialTokens special = tokenizer_.special();
  if (const auto begin = after_begin ? special.begin : special.prompt_begin()) ids.insert(ids.begin(), *begin);
  return ids;
}

void Examiner::set_introduction(const std::string& text) {
  introduction_ = text;
  introduced_ = text.empty() ? nothing_ : read(encode(text), nothing_);
}

Examiner::Tokens Examiner::cut(const std::string& context, const std::string& choice) const {
  const auto before = encode(context, context.empty()), whole = encode(context + choice, context.empty());
  if (before.empty() || whole.size() < 2) {
    fail("eval: '", context, "' and '", choice, "' are ", whole.size(), " tokens, expected one of each at least");
  }
  const auto end = whole.begin() + std::min(std::ssize(before), std::ssize(whole) - 1);
  return {{whole.begin(), end}, {end, whole.end()}};
}

Examiner::Reading Examiner::read(const std::vector<int64_t>& ids, const Reading& from) const {
  if (!begins_with(ids, from.ids)) return read(ids, nothing_);
  Reading to = from;
  to.ids = ids;
  const auto T = std::ssize(ids);
  for (int64_t begin = std::ssize(from.ids); begin < T; begin += options_.chunk) {
    const int64_t end = std::min(begin + options_.chunk, T);
    const Tensor part = at::tensor(
        at::ArrayRef<int64_t>(ids).slice(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), at::kLong);
    const Tensor hidden = model_->hidden(part.unsqueeze(0), to.state);
    if (end == T) to.logits = model_->head(hidden.slice(1, -1)).flatten().to(at::kFloat);
  }
  return to;
}

std::vector<Tensor> Examiner::nats_of(const std::vector<std::vector<int64_t>>& choices, const Reading& from,
                                      std::vector<bool>* greedy) const {
  std::vector<Tensor> nats;
  for (size_t first = 0; first < choices.size(); first += kTogether) {
    const size_t count = std::min(kTogether, choices.size() - first);
    int64_t T = 0;
    for (size_t i = 0; i < count; ++i) T = std::max(T, std::ssize(choices[first + i]));
    const auto C = static_cast<int64_t>(count);
    const Tensor tokens = at::zeros({C, T}, at::kLong);  // zeros after a choice's end, which nothing before sees
    for (int64_t i = 0; i < C; ++i) {
      const auto& ids = choices[first + static_cast<size_t>(i)];
      tokens[i].slice(0, 0, std::ssize(ids)).copy_(at::tensor(ids, at::kLong));
    }
    Tensor logits = from.logits.expand({C, 1, -1});
    if (T > 1) {
      State state = from.state.fork(C);
      logits = at::cat({logits, model_->forward(tokens.slice(1, 0, T - 1), state).to(at::kFloat)}, 1);
    }
    const Tensor each = -logits.log_softmax(2).gather(2, tokens.unsqueeze(2)).squeeze(2);  // [C, T]
    const Tensor likeliest = logits.argmax(2) == tokens;
    for (int64_t i = 0; i < C; ++i) {
      const int64_t length = std::ssize(choices[first + static_cast<size_t>(i)]);
      nats.push_back(each[i].slice(0, 0, length));
      greedy->push_back(likeliest[i].slice(0, 0, length).all().item<bool>());
    }
  }
  return nats;
}

std::string Examiner::write(Reading from) const {
  std::string written;
  std::vector<int64_t> ids;
  for (int64_t n = 0; n < options_.max_tokens; ++n) {
    const auto token = from.logits.argmax().item<int64_t>();
    if (token >= tokenizer_.vocab_size() || token == tokenizer_.special().end) break;
    ids.push_back(token);
    written = tokenizer_.decode(ids);
    for (const auto& stop : options_.stops) {
      // A stop that the answer begins with ends nothing yet: blanks in front are no answer.
      const size_t found = written.find(stop, std::min(written.find_first_not_of(" \t\r\n"), written.size()));
      if (found != std::string::npos) return written.substr(0, found);
    }
    const Tensor next = at::full({1, 1}, token, at::kLong);
    from.logits = model_->forward(next, from.state).flatten().to(at::kFloat);
  }
  return written;
}

Answer Examiner::answer(const Question& question) {
  const at::NoGradGuard no_grad;
  std::string context = introduction_ + question.context;
  if (context.empty() && !tokenizer_.special().begin) context = "\n";  // something to predict a first token from
  std::vector<Tokens> parts;
  for (const auto& choice : question.choices) parts.push_back(cut(context, choice));

  const Reading common = read(parts[question.answer].before, introduced_);
  Answer answer;
  std::vector<bool> greedy;
  std::vector<std::vector<int64_t>> together;
  std::vector<Tensor> nats;
  const bool same = std::all_of(parts.begin(), parts.end(), [&](const Tokens& p) { return p.before == common.ids; });
  if (same) {
    for (const auto& part : parts) together.push_back(part.choice);
    nats = nats_of(together, common, &greedy);
  } else {  // a choice that changes how its context is cut into tokens
    for (const auto& part : parts) nats.push_back(nats_of({part.choice}, read(part.before, common), &greedy)[0]);
  }
  for (size_t i = 0; i < nats.size(); ++i) {
    const auto sum = nats[i].to(at::kDouble).sum().item<double>();
    if (!std::isfinite(sum)) fail("eval: the loss of '", question.choices[i], "' is not finite; is the model sound?");
    answer.nats.push_back(sum);
    const std::string choice = stripped(question.choices[i]);
    const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; };
    answer.bytes.push_back(std::ssize(choice));
    answer.characters.push_back(std::ssize(choice) - std::count_if(choice.begin(), choice.end(), continues));
  }
  answer.tokens = nats[question.answer].numel();
  answer.greedy = greedy[question.answer];
  if (question.choices.size() == 1) answer.written = write(common);
  return answer;
}

std::vector<TaskScores> examine(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer,
                                const std::vector<Question>& questions, const TaskOptions& options) {
  const at::NoGradGuard no_grad;
  Examiner examiner(std::move(model), tokenizer, options);
  std::vector<TaskScores> scores;
  std::vector<std::vector<const Question*>> groups;
  for (const Question& question : questions) {
    size_t g = 0;
    while (g < scores.size() && scores[g].group != question.group) ++g;
    if (g == scores.size()) scores.push_back({.group = question.group}), groups.emplace_back();
    groups[g].push_back(&question);
  }
  size_t done = 0;
  TaskScores all{.group = "all"};
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto shots = static_cast<size_t>(options.shots);
    if (groups[g].size() <= shots) {
      fail("eval: ", scores[g].group, " has ", groups[g].size(), " questions, expected more than the ", shots,
           " examples");
    }
    std::string introduction;
    for (size_t i = 0; i < shots; ++i) introduction += groups[g][i]->context + groups[g][i]->right() + "\n\n";
    examiner.set_introduction(introduction);
    for (size_t i = shots; i < groups[g].size(); ++i) {
      const Answer answer = examiner.answer(*groups[g][i]);
      scores[g].add(*groups[g][i], answer);
      all.add(*groups[g][i], answer);
      if (options.progress) options.progress(++done, questions.size() - shots * groups.size());
    }
  }
  if (scores.size() > 1) scores.push_back(all);
  return scores;
}

}  // namespace lineal
