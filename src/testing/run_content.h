// What two runs must have in common to be the same.
#pragma once

#include <filesystem>
#include <map>
#include <sstream>
#include <string>

#include "core/config.h"
#include "core/file.h"

namespace lineal {

/// Every file of a run but timings, by name.
inline std::map<std::string, std::string> run_content(const std::filesystem::path& run) {
  namespace fs = std::filesystem;
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(run)) {
    if (entry.is_regular_file()) files[fs::relative(entry.path(), run)] = read_file(entry.path());
  }
  std::istringstream lines(files["metrics.jsonl"]);
  std::string rest;
  for (std::string line; std::getline(lines, line);) {
    Json json = Json::parse(line);
    json.erase("elapsed");
    json.erase("tokens_per_second");
    rest += json.dump() + "\n";
  }
  files["metrics.jsonl"] = rest;
  return files;
}

}  // namespace lineal
