// Files that a command is told to write, checked before its work: nothing that someone still needs is written over.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace lineal {

/// Throws Error when `path`, the value of `flag`, is one of the `inputs` or a file that the model's folder holds
/// already. What is no regular file (a device, a pipe) is never refused, nor is "-" among the inputs looked at.
void check_output(const std::string& who, const std::string& flag, const std::filesystem::path& path,
                  const std::vector<std::string>& inputs, const std::filesystem::path& model);

/// The same for a FILE.state, which takes the place of an older state or of an empty file, and of nothing else.
void check_state_output(const std::string& who, const std::string& flag, const std::filesystem::path& path,
                        const std::vector<std::string>& inputs, const std::filesystem::path& model);

}  // namespace lineal
