#include "commands/output.h"

#include "core/error.h"
#include "generate/session.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) && !error;
}

/// Whether `file` lies below `folder` or is what a link there leads to.
bool holds(const fs::path& folder, const fs::path& file) {
  std::error_code error;
  for (fs::path above = fs::absolute(file).parent_path();; above = above.parent_path()) {
    if (same_file(folder, above)) return true;
    if (!above.has_relative_path()) break;
  }
  const auto unreadable = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator at(folder, unreadable, error), end; !error && at != end; at.increment(error)) {
    if (same_file(at->path(), file)) return true;
  }
  return false;
}

}  // namespace

void check_output(const std::string& who, const std::string& flag, const fs::path& path,
                  const std::vector<std::string>& inputs, const fs::path& model) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return;
  const auto refuse = [&](const std::string& what) {
    fail(who, ": ", flag, " ", path.string(), " ", what, ", which would be lost; expected another name");
  };
  for (const std::string& input : inputs) {
    if (input != "-" && same_file(path, input)) refuse("is the file that is read");
  }
  if (holds(model, path)) refuse("is a file in the folder of the model " + model.string());
}

void check_state_output(const std::string& who, const std::string& flag, const fs::path& path,
                        const std::vector<std::string>& inputs, const fs::path& model) {
  check_output(who, flag, path, inputs, model);
  std::error_code error;
  if (!fs::is_regular_file(path, error) || fs::file_size(path, error) == 0 || Session::is_saved(path)) return;
  fail(who, ": ", flag, " ", path.string(), " exists and is no state of lineal; expected a new name, or a state that ",
       "may be replaced");
}

}  // namespace lineal
