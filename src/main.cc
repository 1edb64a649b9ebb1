#include <algorithm>
#include <iostream>

#include "commands/command.h"
#include "core/memory.h"
#include "core/registry.h"

namespace {

int usage() {
  std::cout << "lineal: sequence models whose cost per token does not grow with the context\n\n"
               "usage: lineal COMMAND [flags]; lineal COMMAND --help explains one\n\n";
  size_t longest = 0;
  for (const auto& name : lineal::names<lineal::CommandSpec>()) longest = std::max(longest, name.size());
  for (const auto* command : lineal::all<lineal::CommandSpec>()) {
    std::string left = "  " + command->name;
    left.resize(2 + longest + 2, ' ');
    std::cout << left << command->help << "\n";
  }
  return 0;
}

/// LibTorch appends a stack trace to its messages; a person wants the first line.
std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

/// "lineal: train: out of memory, allocating 4096 bytes; needs less: a smaller model".
std::string out_of_memory(const std::string& message, const lineal::CommandSpec& command) {
  constexpr std::string_view kAsked = "tried to allocate ";
  std::string line = "lineal: " + command.name + ": out of memory";
  if (const size_t at = message.find(kAsked); at != std::string::npos) {
    const size_t from = at + kAsked.size(), to = message.find("bytes", from);
    if (to != std::string::npos) line += ", allocating " + message.substr(from, to - from) + "bytes";
  }
  return line + "; needs less: " + command.less_memory;
}

}  // namespace

int main(int argc, char** argv) {
  lineal::keep_freed_memory();
  lineal::limit_memory();
  const lineal::CommandSpec* command = nullptr;
  try {
    const std::vector<std::string> args(argv + 1, argv + argc);
    if (args.empty() || args[0] == "help" || args[0] == "--help" || args[0] == "-h") return usage();
    if (args[0] == "--version") {
      std::cout << "lineal " << LINEAL_VERSION << "\n";
      return 0;
    }
    command = &lineal::find<lineal::CommandSpec>(args[0]);
    const int code = command->run({args.begin() + 1, args.end()});
    if (!std::cout.flush()) lineal::fail("cannot write to standard output");
    return code;
  } catch (const lineal::Error& error) {
    std::cerr << "lineal: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    if (command != nullptr && lineal::is_out_of_memory(error)) {
      std::cerr << out_of_memory(first_line(error.what()), *command) << "\n";
      return 2;
    }
    std::cerr << "lineal: internal error: " << first_line(error.what()) << "\n";
    return 1;
  }
}
