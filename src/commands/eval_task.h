// lineal eval --task: questions from files, or made to any length.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "commands/command.h"
#include "eval/extrapolation.h"
#include "eval/task.h"

namespace lineal {

struct TaskFlags {
  std::vector<std::string> tasks;  // files of questions, needle, recall
  std::vector<int64_t> lengths = {1024};
  int64_t samples = 10;
  uint64_t seed = 0;
  std::string write;
  TaskOptions options;
};

/// --task and what goes with it.
void add_task(CLI::App& app, TaskFlags& flags);
/// Throws Error for those of its flags that were given without --task.
void refuse_without_task(const CLI::App& app);

/// Asks every model and prints; or, with --write, writes the questions. `files`: what needle hides keys in; `models`
/// may be empty with --write, which then counts bytes.
void ask(const TaskFlags& flags, const std::vector<std::string>& models, const Extrapolation& how,
         const std::vector<std::string>& files, bool json);

}  // namespace lineal
