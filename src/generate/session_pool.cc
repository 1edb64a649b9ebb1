#include "generate/session_pool.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"

namespace lineal {

SessionPool::SessionPool(std::shared_ptr<LanguageModel> model, int64_t capacity) : model_(std::move(model)) {
  if (capacity < 1) fail("session pool: capacity is ", capacity, ", expected one session at least");
  const at::NoGradGuard no_grad;
  states_ = model_->initial_state(capacity);
  sessions_.resize(static_cast<size_t>(capacity));
}

int64_t SessionPool::add(Session session) {
  if (session.model_ != model_) fail("session pool: the session is of another model");
  const auto place = std::find_if(sessions_.begin(), sessions_.end(), [](const auto& session) { return !session; });
  if (place == sessions_.end()) fail("session pool: all of its ", capacity(), " rows are taken, expected a free one");
  const int64_t row = place - sessions_.begin();
  states_.set_rows(at::tensor({row}, at::kLong), session.state_);
  session.state_ = {};
  *place = std::move(session);
  return row;
}

Session SessionPool::take(int64_t row) {
  Session session = at(row);
  session.state_ = states_.rows(at::tensor({row}, at::kLong));
  sessions_[static_cast<size_t>(row)].reset();
  return session;
}

void SessionPool::read(const std::vector<int64_t>& rows, const std::vector<int64_t>& tokens) {
  for (const int64_t row : rows) at(row);
  const Tensor logits = model_->step(at::tensor(tokens, at::kLong), states_, Rows(rows, capacity())).to(at::kFloat);
  for (size_t i = 0; i < rows.size(); ++i) {
    Session& session = *sessions_[static_cast<size_t>(rows[i])];
    session.logits_ = own_storage(logits.select(0, static_cast<int64_t>(i)));
    ++session.tokens_;
    session.remember(tokens[i]);
  }
}

const Session& SessionPool::at(int64_t row) const {
  if (row < 0 || row >= capacity() || !sessions_[static_cast<size_t>(row)]) {
    fail("session pool: row ", row, " holds no session, expected one that add() gave");
  }
  return *sessions_[static_cast<size_t>(row)];
}

int64_t SessionPool::free() const {
  return std::count_if(sessions_.begin(), sessions_.end(), [](const auto& session) { return !session; });
}

}  // namespace lineal
