// Questions whose answers are known, as evaluation harnesses keep them, and two kinds that are made to any length.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/config.h"
#include "data/tokenizer.h"

namespace lineal {

/// One choice: the answer, which the model is to write. Several: the model is to find one of them likelier than the
/// others.
struct Question {
  std::string context;
  std::vector<std::string> choices;  // each goes on where the context ends, with its own blank in front
  size_t answer = 0;                 // index of the right one
  std::string group;                 // whose questions are counted together: the file, or length and depth

  const std::string& right() const { return choices[answer]; }
};

/// A record's fields under any of the names that published sets use: the context (context, query, question, prompt,
/// input, ctx, goal), what may follow (choices, endings, options: a list, or an object with lists text and label; or
/// sol1 and sol2) and which of it is right (gold, label, answer, answerKey: an index, a label, or the choice itself);
/// or a context and the text that answers it (target, answer, completion). A blank joins them where neither has one,
/// blanks at the context's end go to the choice. Throws Error naming `who` and the field.
Question read_question(const Json& record, const std::string& who);

/// One record per line, .gz too; empty lines are passed over. Throws Error naming file and line.
std::vector<Question> read_questions(const std::filesystem::path& path);

/// The record of a question, which read_question reads back, and its whole as `text`, to train on.
Json to_record(const Question& question);

/// Asks for a number of five digits that stands at `depth` (0: the beginning, 1: the end) of `tokens` tokens of `hay`,
/// which is repeated if it is shorter.                           (Landmark Attention, 2023, section 4.2: pass keys)
/// Throws Error when the length has no place for it.
Question needle_question(const Tokenizer& tokenizer, const std::vector<int64_t>& hay, int64_t tokens, double depth,
                         uint64_t seed);

/// Asks for the value of one of the pairs of letters and digits that fill `tokens` tokens; the pair stands at `depth`.
///                                            (Zoology, 2023: associative recall; Using Fast Weights, 2016)
Question recall_question(const Tokenizer& tokenizer, int64_t tokens, double depth, uint64_t seed);

}  // namespace lineal
