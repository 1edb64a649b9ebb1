#include "commands/command.h"

#include <ATen/Parallel.h>

#include <iostream>

#include "core/error.h"
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

}  // namespace

bool parse(CLI::App& app, const std::vector<std::string>& args) {
  app.allow_extras();
  std::vector<std::string> reversed(args.rbegin(), args.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.help();
    return false;
  } catch (const CLI::ParseError& error) {
    fail(app.get_name(), ": ", error.what(), "; see lineal ", app.get_name(), " --help");
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
  app.add_option_function<std::string>("--kernels", kernels,
                                       "auto: fused kernels where there are any; reference; fused: or an error")
      ->type_name("auto|reference|fused")
      ->default_str("auto");
}

}  // namespace lineal
