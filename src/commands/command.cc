#include "commands/command.h"

#include <ATen/Parallel.h>

#include <iostream>

#include "core/error.h"
#include "core/memory.h"
#include "kernels/kernels.h"

namespace lineal {
namespace {

std::string flag(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

std::vector<std::string> flags(const CLI::App& app) {
  std::vector<std::string> result;
  for (const CLI::Option* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) result.push_back("--" + name);
  }
  return result;
}

/// CLI11's "--steps: Value 0 not in range 1 to 9" as the fields of a Config say it: "--steps is 0, expected 1 to 9".
std::string in_words(std::string message) {
  constexpr std::string_view kValue = ": Value ", kRange = " not in range ";
  const size_t value = message.find(kValue), range = message.rfind(kRange);
  if (value == std::string::npos || range == std::string::npos || range < value) return message;
  message.replace(range, kRange.size(), ", expected ");
  return message.replace(value, kValue.size(), " is ");
}

/// "train: out of memory, allocating 4096 bytes; needs less: a smaller model".
std::string out_of_memory(const std::string& message, const CommandSpec& command) {
  constexpr std::string_view kAsked = "tried to allocate ";
  std::string line = command.name + ": out of memory";
  if (const size_t at = message.find(kAsked); at != std::string::npos) {
    const size_t from = at + kAsked.size(), to = message.find("bytes", from);
    if (to != std::string::npos) line += ", allocating " + message.substr(from, to - from) + "bytes";
  }
  return line + "; needs less: " + command.less_memory;
}

}  // namespace

int run(const CommandSpec& command, const std::vector<std::string>& args) {
  try {
    return command.run(args);
  } catch (const std::exception& error) {
    if (!is_out_of_memory(error)) throw;
    throw Error(out_of_memory(first_line(error.what()), command));
  }
}

bool parse(CLI::App& app, const std::vector<std::string>& args) {
  app.allow_extras();
  std::vector<std::string> reversed(args.rbegin(), args.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.name("lineal " + app.get_name())->help();
    return false;
  } catch (const CLI::ParseError& error) {
    fail(app.get_name(), ": ", in_words(error.what()), "; see lineal ", app.get_name(), " --help");
  }
  for (const auto& extra : app.remaining()) {
    if (!extra.starts_with("-")) {
      fail(app.get_name(), ": unexpected argument '", extra, "'; see lineal ", app.get_name(), " --help");
    }
    const std::string near = nearest(extra.substr(0, extra.find('=')), flags(app));
    fail(app.get_name(), ": unknown flag '", extra, "'", near.empty() ? "" : "; did you mean '" + near + "'?",
         " (lineal ", app.get_name(), " --help lists them)");
  }
  return true;
}

CLI::Validator within(double least, double most) {
  const std::string range = text("FLOAT in [", least, " - ", most, "]");
  const auto check = [least, most](const std::string& value) {
    double number = 0;
    const bool is_in = CLI::detail::lexical_cast(value, number) && number >= least && number <= most;
    return is_in ? std::string() : text("Value ", value, " not in range ", least, " to ", most);
  };
  return CLI::Validator(check, range);
}

void add_fields(CLI::App& app, Config& config, const std::string& who, const std::vector<std::string>& hidden) {
  for (Field& field : config.fields()) {
    if (std::find(hidden.begin(), hidden.end(), field.name) != hidden.end()) continue;
    const auto set = [field, who](const std::string& value) mutable { field.parse(value, who); };
    auto* option = app.add_option_function<std::string>(flag(field.name), set, field.help);
    option->type_name(field.admits())->default_str(line_of(field.get()));
  }
}

void add_compute(CLI::App& app) {
  const auto set = [](int64_t threads) { at::set_num_threads(static_cast<int>(threads)); };
  app.add_option_function<int64_t>("-t,--threads", set, "threads to compute with")
      ->check(CLI::Range(int64_t{1}, kMostThreads))
      ->default_str(std::to_string(at::get_num_threads()));
  const auto kernels = [](const std::string& name) { kernels::choose(name); };
  app.add_option_function<std::string>(
         "--kernels", kernels,
         "auto: fused kernels where there are any; reference: none; fused: an error where an operation has none "
         "for its input")
      ->type_name("auto|reference|fused")
      ->default_str("auto");
}

}  // namespace lineal
