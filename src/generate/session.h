// A session: a model and what it remembers of one text. It can be forked, saved, and go on where it was.
#pragma once

#include <deque>
#include <filesystem>
#include <memory>
#include <vector>

#include "backbones/language_model.h"

namespace lineal {

class Session {
 public:
  /// Tokens of one forward call while reading; what a call returns does not depend on it beyond rounding.
  static constexpr int64_t kChunk = 2048;
  /// How many of the last tokens a session knows, for the sampler's penalty.
  static constexpr size_t kRecent = 1024;

  explicit Session(std::shared_ptr<LanguageModel> model);
  /// One that another holds in pieces: a state of one sequence; the logits [N] after it, undefined before the first
  /// token; the tokens read and the last of them.
  Session(std::shared_ptr<LanguageModel> model, State state, Tensor logits, int64_t tokens, std::deque<int64_t> recent);

  /// Reads the tokens after those read before. An id outside the vocabulary is an Error and leaves the session as it
  /// was.
  void read(const std::vector<int64_t>& tokens);
  void read(int64_t token) { read(std::vector<int64_t>{token}); }

  /// Logits [N] of the next token, float32; throws Error before the first token.
  const Tensor& logits() const;
  /// Tokens read, those before a save included.
  int64_t tokens() const { return tokens_; }
  /// The last of them, at most kRecent.
  const std::deque<int64_t>& recent() const { return recent_; }
  const State& state() const { return state_; }
  const LanguageModel& model() const { return *model_; }

  /// n sessions that go on from here, each with memory of its own.
  std::vector<Session> fork(int64_t n) const;

  /// FILE.state, atomic: a safetensors file of the state's parts as "state." + name, "last_logits" and "recent", with
  /// metadata format, tokens, layers, fingerprint and checksum. NaN in any of them is an Error.         docs/formats.md
  void save(const std::filesystem::path& path) const;
  /// A saved session, with no token computed again. Throws Error naming the file for one that is no state, is damaged,
  /// or was saved with another model (both fingerprints are named).
  static Session load(const std::filesystem::path& path, std::shared_ptr<LanguageModel> model);
  /// Whether the file says that it is a saved session; its content is not looked at.
  static bool is_saved(const std::filesystem::path& path);

 private:
  friend class SessionPool;
  void remember(int64_t token);

  std::shared_ptr<LanguageModel> model_;
  State state_;
  Tensor logits_;
  int64_t tokens_ = 0;
  std::deque<int64_t> recent_;
};

}  // namespace lineal
