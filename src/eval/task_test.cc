#include "eval/task.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/file.h"
#include "core/registry.h"
#include "testing/temporary_folder.h"
#include "testing/testing.h"

namespace lineal {
namespace {

Question question(const char* json) { return read_question(Json::parse(json), "test"); }

TEST(Questions, FieldsOfPublishedSets) {
  const Question ending = question(R"({"ctx": "He sat", "endings": ["down.", "up the sky."], "label": "1"})");
  EXPECT_EQ(ending.context, "He sat");
  EXPECT_EQ(ending.choices, std::vector<std::string>({" down.", " up the sky."}));
  EXPECT_EQ(ending.answer, 1u);
  const Question labelled = question(
      R"({"question": "What boils?\n", "choices": {"text": ["ice", "water"], "label": ["A", "B"]}, "answerKey": "B"})");
  EXPECT_EQ(labelled.context, "What boils?");
  EXPECT_EQ(labelled.choices, std::vector<std::string>({"\nice", "\nwater"}));
  EXPECT_EQ(labelled.answer, 1u);
  EXPECT_EQ(question(R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 1})").right(), " b");
  EXPECT_EQ(question(R"({"query": "q", "choices": ["3", "2", "1"], "answer": "1"})").answer, 2u);  // the choice, not 1
  const Question written = question(R"({"prompt": "2 + 2 = ", "answer": "4"})");
  EXPECT_EQ(written.context, "2 + 2 =");
  EXPECT_EQ(written.choices, std::vector<std::string>({" 4"}));
  EXPECT_EQ(question(R"({"context": "", "target": "x"})").right(), "x");
}

TEST(Questions, WhatIsNone) {
  EXPECT_ERROR(question(R"([1])"), "test: expected a JSON object, got array");
  EXPECT_ERROR(question(R"({"text": "x"})"), "no context, expected one of context, query");
  EXPECT_ERROR(question(R"({"context": 3, "target": "x"})"), "test: context is 3, expected a string");
  EXPECT_ERROR(question(R"({"context": "x"})"), "nothing to compare with");
  EXPECT_ERROR(question(R"({"context": "x", "choices": ["a", "b"]})"), "no right choice, expected one of gold");
  EXPECT_ERROR(question(R"({"context": "x", "choices": ["a", "b"], "gold": 2})"),
               "gold is 2, expected an index from 0");
  EXPECT_ERROR(question(R"({"context": "x", "choices": ["a", 1], "gold": 0})"), "choices is 1, expected a string");
  EXPECT_ERROR(question(R"({"context": "x", "choices": ["a"], "gold": 0})"), "one choice, expected two");
  EXPECT_ERROR(question(R"({"context": "x", "choices": [], "gold": 0})"), "expected a list");
  EXPECT_ERROR(question(R"({"context": "x", "choices": ["a", " "], "gold": 0})"), "an empty choice");
  EXPECT_ERROR(question(R"({"context": "x", "choices": {"text": ["a", "b"], "label": ["A"]}, "gold": 0})"), "2 texts");
}

TEST(Questions, Files) {
  const TemporaryFolder folder;
  write_atomic(folder / "a.jsonl",
               "{\"context\": \"x\", \"target\": \"y\"}\n\n{\"context\": \"z\", \"target\": \"w\"}");
  const auto found = read_questions(folder / "a.jsonl");
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[1].context, "z");
  EXPECT_EQ(found[1].group, "a.jsonl");
  const Question again = read_question(to_record(found[1]), "test");
  EXPECT_EQ(again.context + again.right(), "z w");
  std::string many;
  for (int i = 0; i < 5000; ++i) many += "{\"context\": \"question\", \"target\": \"" + std::to_string(i) + "\"}\n";
  write_atomic(folder / "many.jsonl", many);
  const auto all = read_questions(folder / "many.jsonl");
  ASSERT_EQ(all.size(), 5000u);
  EXPECT_EQ(all.back().right(), " 4999");
  write_atomic(folder / "b.jsonl", "{\"context\": \"x\", \"target\": \"y\"}\n{\"context\"");
  EXPECT_ERROR(read_questions(folder / "b.jsonl"), "b.jsonl:2: no valid JSON");
  const std::string deep = std::string(500'000, '[') + std::string(500'000, ']');
  write_atomic(folder / "deep.jsonl", R"({"context": )" + deep + R"(, "target": "x"})");
  EXPECT_ERROR(read_questions(folder / "deep.jsonl"), "deep.jsonl:1: nests deeper than 64");
  write_atomic(folder / "c.jsonl", "\n\n");
  EXPECT_ERROR(read_questions(folder / "c.jsonl"), "no questions");
  EXPECT_ERROR(read_questions(folder / "none.jsonl"), "none.jsonl");
}

TEST(Questions, ANeedleLiesAtItsDepth) {
  const auto bytes = find<TokenizerSpec>("bytes", "test").make();
  const auto hay = bytes->encode("abcdefghij");
  for (const double depth : {0.0, 0.5, 1.0}) {
    const Question q = needle_question(*bytes, hay, 300, depth, 5);
    EXPECT_EQ(q.context.size(), 300u);
    const std::string needle = "\nThe pass key is" + q.right() + ". Remember it.\n";
    const auto at = q.context.find(needle);
    ASSERT_NE(at, std::string::npos) << q.context;
    const auto left = 300 - needle.size() - std::string("\nWhat is the pass key? The pass key is").size();
    EXPECT_EQ(at, static_cast<size_t>(depth * static_cast<double>(left)));
    EXPECT_EQ(q.right().size(), 6u);
  }
  EXPECT_NE(needle_question(*bytes, hay, 300, 0, 5).right(), needle_question(*bytes, hay, 300, 0, 6).right());
  EXPECT_ERROR(needle_question(*bytes, hay, 50, 0, 5), "length 50, expected");
}

TEST(Questions, RecallAsksForOneOfDifferentPairs) {
  const auto bytes = find<TokenizerSpec>("bytes", "test").make();
  for (const double depth : {0.0, 0.5, 1.0}) {
    const Question q = recall_question(*bytes, 400, depth, 7);
    EXPECT_LE(q.context.size(), 400u);
    EXPECT_GT(q.context.size(), 400u - 8);
    const std::string key = q.context.substr(q.context.rfind('\n') + 1);
    const auto at = q.context.find(key);
    EXPECT_EQ(q.context.substr(at, 7), key + q.right());
    EXPECT_EQ(q.context.find(key, at + 1), q.context.size() - 4);
    const double pairs = static_cast<double>(q.context.size() - 4) / 8;
    EXPECT_EQ(at / 8, static_cast<size_t>(std::lround(depth * (pairs - 1))));
  }
  const std::string many = recall_question(*bytes, 80'000, 0, 7).context;
  std::set<std::string> keys;
  for (size_t at = 0; at + 4 < many.size(); at += 8) keys.insert(many.substr(at, 4));
  EXPECT_EQ(keys.size(), many.size() / 8);
  EXPECT_ERROR(recall_question(*bytes, 5, 0, 7), "length 5, expected 12");
}

std::shared_ptr<LanguageModel> random_model(const std::string& plan) {
  at::manual_seed(3);
  LanguageModelConfig config;
  config.hidden_size = 16, config.intermediate_size = 20, config.initializer_range = 0.3;
  config.layers = parse_plan(plan);
  auto model = std::make_shared<LanguageModel>(config);
  model->eval();
  return model;
}

/// Minus the log-likelihood of the bytes after `context`, in one call of its own.
double plain_nats(LanguageModel& model, const std::string& context, const std::string& choice) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> ids;
  for (const char c : context + choice) ids.push_back(static_cast<unsigned char>(c));
  const Tensor tokens = at::tensor(ids, at::kLong).unsqueeze(0);
  State state = model.initial_state(1);
  const Tensor each =
      model.forward(tokens, state).log_softmax(2).slice(1, 0, -1).gather(2, tokens.slice(1, 1).unsqueeze(2));
  return -each.slice(1, static_cast<int64_t>(context.size()) - 1).sum().item<double>();
}

TEST(Task, NatsAreThoseOfTheWholeText) {
  const auto bytes = find<TokenizerSpec>("bytes", "test").make();
  for (const std::string plan : {"attention*2", "ttt_linear(num_attention_heads=2,mini_batch_size=4)"}) {
    const auto model = random_model(plan);
    Question q{"some context of a few bytes", {}, 2, "g"};
    for (int i = 0; i < 19; ++i) q.choices.push_back(" choice " + std::string(static_cast<size_t>(i % 5), 'x') + "y");
    for (const std::string introduction : {"", "an example\n\n"}) {
      Examiner examiner(model, *bytes, {.chunk = 7});
      examiner.set_introduction(introduction);
      const Answer answer = examiner.answer(q);
      ASSERT_EQ(answer.nats.size(), 19u);
      for (size_t i = 0; i < 19; ++i) {
        EXPECT_NEAR(answer.nats[i], plain_nats(*model, introduction + q.context, q.choices[i]), 1e-3) << plan << i;
      }
      EXPECT_EQ(answer.tokens, 11);
    }
  }
}

TEST(Task, WrittenAnswersAreTheLikeliestTokens) {
  const auto bytes = find<TokenizerSpec>("bytes", "test").make();
  const auto model = random_model("linear_attention*2");
  std::string greedy = "a context";
  {
    const at::NoGradGuard no_grad;
    for (int i = 0; i < 6; ++i) {
      State state = model->initial_state(1);
      const Tensor logits = model->forward(at::tensor(bytes->encode(greedy), at::kLong).unsqueeze(0), state);
      greedy += static_cast<char>(logits[0][-1].argmax().item<int64_t>());
    }
  }
  const std::string right = greedy.substr(9);
  Examiner examiner(model, *bytes, {.max_tokens = 6, .stops = {}});
  const Answer answer = examiner.answer({"a context", {right}, 0, "g"});
  EXPECT_EQ(answer.written, right);
  EXPECT_TRUE(answer.greedy);
  std::string wrong = right;
  wrong.back() = static_cast<char>(wrong.back() ^ 1);
  EXPECT_FALSE(examiner.answer({"a context", {wrong}, 0, "g"}).greedy);
  Examiner stopping(model, *bytes, {.max_tokens = 6, .stops = {right.substr(3, 2)}});
  EXPECT_EQ(stopping.answer({"a context", {right}, 0, "g"}).written, right.substr(0, right.find(right.substr(3, 2))));
}

TEST(Task, Scores) {
  TaskScores scores;
  const Question choice{"c", {" a", " bbbb"}, 1, "g"}, target{"c", {" 42"}, 0, "g"};
  scores.add(choice, {.nats = {2, 4}, .characters = {1, 1}, .bytes = {1, 4}, .tokens = 5});  // likeliest per byte
  scores.add(choice, {.nats = {9, 4}, .characters = {1, 4}, .bytes = {1, 4}, .tokens = 5});
  scores.add(target, {.nats = {1}, .bytes = {2}, .tokens = 3, .greedy = false, .written = "42 \n"});
  scores.add(target, {.nats = {1}, .bytes = {2}, .tokens = 3, .greedy = true, .written = "43"});
  EXPECT_EQ(scores.accuracy.right, 1);
  EXPECT_EQ(scores.accuracy_per_character.right, 1);
  EXPECT_EQ(scores.accuracy_per_byte.right, 2);
  EXPECT_EQ(scores.exact_match.right, 1);
  EXPECT_EQ(scores.greedy.right, 1);
  EXPECT_DOUBLE_EQ(scores.accuracy.error().value(), 0.5);
  EXPECT_DOUBLE_EQ(scores.perplexity(), std::exp(10.0 / 16));
  EXPECT_FALSE(Share{}.error());
}

TEST(Task, GroupsAndExamples) {
  const auto bytes = find<TokenizerSpec>("bytes", "test").make();
  const auto model = random_model("linear_attention");
  std::vector<Question> questions;
  for (int i = 0; i < 6; ++i) {
    questions.push_back({"q" + std::to_string(i), {" yes", " no"}, 0, i % 2 == 0 ? "even" : "odd"});
  }
  const auto scores = examine(model, *bytes, questions, {.shots = 1});
  ASSERT_EQ(scores.size(), 3u);
  EXPECT_EQ(scores[0].group, "even");
  EXPECT_EQ(scores[2].group, "all");
  EXPECT_EQ(scores[0].accuracy.of, 2);
  EXPECT_EQ(scores[2].accuracy.of, 4);
  const double expected = plain_nats(*model, "q0 yes\n\nq2", " yes") + plain_nats(*model, "q0 yes\n\nq4", " yes");
  EXPECT_NEAR(scores[0].loss.nats, expected, 1e-3);
  EXPECT_ERROR(examine(model, *bytes, questions, {.shots = 3}), "even has 3 questions, expected more than the 3");
}

}  // namespace
}  // namespace lineal
