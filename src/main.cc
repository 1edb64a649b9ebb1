#include <ATen/ATen.h>

#include <iostream>

#include "commands/command.h"
#include "core/registry.h"

namespace {

int usage() {
  std::cout << "lineal: sequence models whose cost per token does not grow with the context\n\n"
               "usage: lineal COMMAND [flags]; lineal COMMAND --help explains one\n\n";
  for (const auto* command : lineal::all<lineal::CommandSpec>()) {
    std::string left = "  " + command->name;
    left.resize(14, ' ');
    std::cout << left << command->help << "\n";
  }
  return 0;
}

/// LibTorch appends a stack trace to its messages; a person wants the first line.
std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> args(argv + 1, argv + argc);
    if (args.empty() || args[0] == "--help" || args[0] == "-h") return usage();
    if (args[0] == "--version") {
      std::cout << "lineal " << LINEAL_VERSION << "\n";
      return 0;
    }
    const int code = lineal::find<lineal::CommandSpec>(args[0]).run({args.begin() + 1, args.end()});
    if (!std::cout.flush()) lineal::fail("cannot write to standard output");
    return code;
  } catch (const lineal::Error& error) {
    std::cerr << "lineal: " << error.what() << "\n";
    return 2;
  } catch (const c10::OutOfMemoryError& error) {
    std::cerr << "lineal: out of memory: " << first_line(error.what_without_backtrace()) << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "lineal: internal error: " << first_line(error.what()) << "\n";
    return 1;
  }
}
