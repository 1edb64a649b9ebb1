// One file = one subcommand: parse, call, print; no maths.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "core/config.h"

namespace lineal {

/// A line of the table. `run` parses its arguments (without the command's name) and returns the exit code; a user's
/// mistake is thrown as Error.
struct CommandSpec {
  static constexpr const char* kKind = "command";
  std::string name;
  std::string help;
  int (*run)(const std::vector<std::string>& args);
  /// What takes less memory, for when there was not enough.
  std::string less_memory = "a smaller model";
};

/// Runs it. When there was not enough memory that is an Error that says what takes less.
int run(const CommandSpec& command, const std::vector<std::string>& args);

/// Parses `args` into `app`: false after printing --help. A wrong command line is an Error of one line; an unknown flag
/// suggests the nearest.
bool parse(CLI::App& app, const std::vector<std::string>& args);

/// Of a flag: a number from `least` to `most`, which CLI11's own check takes "nan" for.
CLI::Validator within(double least, double most);

/// A flag for each field, --hidden-size for hidden_size; values are checked as everywhere. Fields in `hidden` are left
/// out.
void add_fields(CLI::App& app, Config& config, const std::string& who, const std::vector<std::string>& hidden = {});

constexpr int64_t kMostThreads = 4096;

/// -t, --threads: threads LibTorch uses, the machine's cores by default; --kernels: auto, reference or fused. Applied
/// when parsed.
void add_compute(CLI::App& app);

}  // namespace lineal
