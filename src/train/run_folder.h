// runs/NAME/: what a training run leaves, complete after a kill at any moment.                   docs/formats.md
//   config.json       what the run was told
//   metrics.jsonl     a line of JSON per log step
//   checkpoints/step-N/{config.json, model.safetensors, optimizer.safetensors, trainer.json}
// A checkpoint is written under a name that begins with a dot, synced, and renamed: step-N is complete or absent.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"

namespace lineal {

struct Checkpoint {
  int64_t step = 0;
  std::filesystem::path path;
};

/// The checkpoint of a run with the largest step, if it has one; a folder that cannot be read has none.
std::optional<Checkpoint> newest_checkpoint(const std::filesystem::path& run);

/// A run's folder, held alone: a second process that opens it gets an Error.
class RunFolder {
 public:
  /// Makes the folder with its config.json. Throws Error when it holds a run with a checkpoint or anything else
  /// already, or cannot be written.
  static std::unique_ptr<RunFolder> create(const std::filesystem::path& path, const Json& config);
  /// The same without config.json yet: the folder is a run from set_config on; without it what was made goes again. A
  /// run that never made a checkpoint gives its folder up: until set_config it stays as it was.
  static std::unique_ptr<RunFolder> reserve(const std::filesystem::path& path);
  /// An existing run (core/run_mark.h); removes what a killed write left. Throws Error for a folder that is no run.
  static std::unique_ptr<RunFolder> open(const std::filesystem::path& path);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const Json& config() const { return config_; }
  void set_config(const Json& config);

  std::optional<Checkpoint> newest() const { return newest_checkpoint(path_); }
  /// `write` fills a temporary folder; with the number of metrics lines so far in trainer.json it becomes step-N. Then
  /// removes checkpoints beyond the newest `keep` (0: all stay) and older ones whose step is no multiple of `every`.
  Checkpoint save(int64_t step, int64_t keep, int64_t every,
                  const std::function<void(const std::filesystem::path& dir)>& write);

  /// Appends a line to metrics.jsonl.
  void add_metrics(const Json& line);
  /// Cuts metrics.jsonl to the lines that `checkpoint` (none: the run's start) had seen; returns the last of them, or
  /// null.
  Json rewind_metrics(const std::optional<Checkpoint>& checkpoint);

 private:
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}
  void lock();

  std::filesystem::path path_;
  Json config_;
  std::vector<std::filesystem::path> made_;  // by reserve, innermost first
  int lock_ = -1, metrics_ = -1;
  int64_t lines_ = 0;
};

}  // namespace lineal
