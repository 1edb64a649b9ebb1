#include <algorithm>
#include <iostream>

#include "commands/command.h"
#include "core/error.h"
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

}  // namespace

int main(int argc, char** argv) {
  lineal::keep_freed_memory();
  lineal::limit_memory();
  try {
    const std::vector<std::string> args(argv + 1, argv + argc);
    if (args.empty() || args[0] == "help" || args[0] == "--help" || args[0] == "-h") return usage();
    if (args[0] == "--version") {
      std::cout << "lineal " << LINEAL_VERSION << "\n";
      return 0;
    }
    const int code = lineal::run(lineal::find<lineal::CommandSpec>(args[0]), {args.begin() + 1, args.end()});
    if (!std::cout.flush()) lineal::fail("cannot write to standard output");
    return code;
  } catch (const lineal::Error& error) {
    std::cerr << "lineal: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "lineal: internal error: " << lineal::first_line(error.what()) << "\n";
    return 1;
  }
}
