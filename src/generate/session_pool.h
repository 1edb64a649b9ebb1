// Sessions of one model that go on together: a step reads one token of each of them at once.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "generate/session.h"

namespace lineal {

/// Their states are the rows of one, [capacity, ...], and change in place.
class SessionPool {
 public:
  SessionPool(std::shared_ptr<LanguageModel> model, int64_t capacity);

  /// Takes a session in and returns its row. Throws Error when none is free or it is of another model.
  int64_t add(Session session);
  /// Gives it back, as a value; the row is free again.
  Session take(int64_t row);

  /// The next token of each of these rows, which must be different. An Error leaves all of them as they were.
  void read(const std::vector<int64_t>& rows, const std::vector<int64_t>& tokens);
  /// The row's session without its state, which is the pool's: logits(), tokens() and recent().
  const Session& at(int64_t row) const;

  int64_t capacity() const { return std::ssize(sessions_); }
  /// Rows that are free.
  int64_t free() const;

 private:
  std::shared_ptr<LanguageModel> model_;
  State states_;
  std::vector<std::optional<Session>> sessions_;
};

}  // namespace lineal
