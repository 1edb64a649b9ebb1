#include "core/run_mark.h"

#include "core/config.h"
#include "core/error.h"
#include "core/file.h"

namespace lineal {

bool is_run(const std::filesystem::path& folder) {
  constexpr std::uintmax_t kMost = 1 << 24;  // bytes of a config.json that could be a run's
  const auto path = folder / "config.json";
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error) || std::filesystem::file_size(path, error) > kMost) return false;
  try {
    const Json json = Json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
    return json.is_object() && json.contains("format") && json["format"] == kRunFormat;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace lineal
