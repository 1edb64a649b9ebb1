#include "commands/same_tokenizer.h"

#include "core/error.h"

namespace lineal {

void check_same_tokenizer(const std::string& who, const std::string& first_path, const LoadedModel& first,
                          const std::string& second_path, const LoadedModel& second) {
  const std::string &of_first = first.model->config().tokenizer, &of_second = second.model->config().tokenizer;
  if (tokenizer_of(first, who).identity() == tokenizer_of(second, who).identity() && of_first == of_second) return;
  fail(who, ": ", second_path, " has the tokenizer ", of_second, ", ", first_path, " has ",
       of_first == of_second ? "one of another file" : of_first, "; expected models that read the same tokens");
}

}  // namespace lineal
