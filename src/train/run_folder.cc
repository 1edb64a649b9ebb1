#include "train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/error.h"
#include "core/file.h"
#include "core/run_mark.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail("train: cannot make the folder ", path.string(), ": ", error.message());
}

/// The folder and those above it that are not there, innermost first.
std::vector<fs::path> missing_folders(const fs::path& path) {
  std::error_code error;
  std::vector<fs::path> missing;
  for (fs::path at = fs::absolute(path); !fs::exists(at, error) && at.has_relative_path(); at = at.parent_path()) {
    missing.push_back(at);
  }
  return missing;
}

void sync_folder(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)!::fsync(fd);  // some filesystems cannot sync a folder
  ::close(fd);
}

void rename_folder(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail("cannot write ", to.string(), ": ", reason(errno));
  sync_folder(to.parent_path());
}

Json read_json(const fs::path& path) {
  const Json json = Json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) fail(path.string(), ": no valid JSON object; the file is damaged");
  return json;
}

int64_t read_count(const Json& json, const std::string& field, const fs::path& path) {
  if (!json.contains(field) || !json[field].is_number_unsigned() || json[field].get<uint64_t>() > uint64_t{INT64_MAX}) {
    fail(path.string(), ": ", field, " is ", json.contains(field) ? json[field].dump() : "missing",
         ", expected a count");
  }
  return json[field].get<int64_t>();
}

/// N of "step-N", or -1.
int64_t step_of(const std::string& name) {
  const std::string digits = name.starts_with("step-") ? name.substr(5) : "";
  if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != digits.npos) return -1;
  return std::stoll(digits);
}

/// In the order of their steps.
std::vector<Checkpoint> checkpoints_of(const fs::path& run) {
  std::vector<Checkpoint> list;
  std::error_code error;
  for (fs::directory_iterator at(run / "checkpoints", error), end; !error && at != end; at.increment(error)) {
    const int64_t step = step_of(at->path().filename());
    if (step >= 0) list.push_back({step, at->path()});
  }
  std::sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return list;
}

void remove_folder(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail("cannot remove ", path.string(), ": ", error.message());
}

/// Hidden entries are what a killed write left.
void remove_leftovers(const fs::path& folder, const std::string& prefix) {
  std::error_code error;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().filename().string().starts_with(prefix)) found.push_back(entry.path());
  }
  for (const auto& path : found) fs::remove_all(path, error);
}

}  // namespace

std::optional<Checkpoint> newest_checkpoint(const fs::path& run) {
  const auto list = checkpoints_of(run);
  return list.empty() ? std::nullopt : std::optional(list.back());
}

std::unique_ptr<RunFolder> RunFolder::create(const fs::path& path, const Json& config) {
  auto run = reserve(path);
  run->set_config(config);
  return run;
}

std::unique_ptr<RunFolder> RunFolder::reserve(const fs::path& path) {
  std::unique_ptr<RunFolder> run(new RunFolder(path));
  run->made_ = missing_folders(path);
  make_folder(path);
  run->lock();
  const bool begun = is_run(path);
  if (begun && newest_checkpoint(path)) {
    fail("train: ", path.string(), " holds a run already; continue it with --resume ", path.string(),
         ", or choose another --out");
  }
  const auto refuse_others = [&](const fs::path& folder, const std::string& leftover,
                                 const std::vector<std::string>& of_a_run) {
    std::error_code unreadable;
    for (fs::directory_iterator at(folder, unreadable), end; !unreadable && at != end; at.increment(unreadable)) {
      const std::string name = at->path().filename();
      const bool known = begun && std::find(of_a_run.begin(), of_a_run.end(), name) != of_a_run.end();
      if (!known && !name.starts_with(leftover)) {
        fail("train: ", folder.string(), " is not empty (", name, "), expected a new or empty folder for --out");
      }
    }
    if (unreadable) fail("train: cannot read the folder ", folder.string(), ": ", unreadable.message());
  };
  refuse_others(path, ".lineal-", {"config.json", "metrics.jsonl", "checkpoints"});
  std::error_code error;
  if (begun && fs::exists(path / "checkpoints", error)) refuse_others(path / "checkpoints", ".", {});
  remove_leftovers(path, ".lineal-");
  remove_leftovers(path / "checkpoints", ".");
  if (::access(path.c_str(), W_OK) != 0)
    fail("train: cannot write into the folder ", path.string(), ": ", reason(errno));
  return run;
}

std::unique_ptr<RunFolder> RunFolder::open(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path / "config.json", error)) {
    fail("train: ", path.string(), " is no run to resume: it has no config.json");
  }
  std::unique_ptr<RunFolder> run(new RunFolder(path));
  run->lock();
  remove_leftovers(path, ".lineal-");
  remove_leftovers(path / "checkpoints", ".");
  Json config = read_json(path / "config.json");
  if (!is_run(path)) {
    fail("train: ", path.string(), " is no run to resume: its config.json has no \"format\": \"", kRunFormat, "\"");
  }
  config.erase("format");
  run->config_ = config;
  return run;
}

RunFolder::~RunFolder() {
  if (config_.is_null()) {
    std::error_code ignored;
    for (const fs::path& folder : made_) fs::remove(folder, ignored);
  }
  if (metrics_ >= 0) ::close(metrics_);
  if (lock_ >= 0) ::close(lock_);
}

void RunFolder::lock() {
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) fail("train: cannot open the folder ", path_.string(), ": ", reason(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    fail("train: another process is training in ", path_.string());
  }
}

void RunFolder::set_config(const Json& config) {
  Json marked = {{"format", kRunFormat}};
  marked.update(config);
  write_atomic(path_ / "config.json", marked.dump(2) + "\n");
  config_ = config;
}

Checkpoint RunFolder::save(int64_t step, int64_t keep, int64_t every,
                           const std::function<void(const fs::path& dir)>& write) {
  const fs::path folder = path_ / "checkpoints";
  const std::string name = "step-" + std::to_string(step);
  const fs::path temporary = folder / ("." + name + ".writing"), target = folder / name;
  make_folder(folder);
  remove_folder(temporary);
  if (metrics_ >= 0 && ::fsync(metrics_) != 0) {
    fail("cannot write ", (path_ / "metrics.jsonl").string(), ": ", reason(errno));
  }
  try {
    make_folder(temporary);
    write(temporary);
    write_atomic(temporary / "trainer.json", Json{{"step", step}, {"metrics_lines", lines_}}.dump(2) + "\n");
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  sync_folder(temporary);
  rename_folder(temporary, target);

  const auto list = checkpoints_of(path_);
  for (size_t i = 0; i + 1 < list.size(); ++i) {
    const bool old = keep > 0 && i + static_cast<size_t>(keep) < list.size();
    if (!old && list[i].step % every == 0) continue;
    const fs::path removing = folder / ("." + list[i].path.filename().string() + ".removing");
    rename_folder(list[i].path, removing);
    remove_folder(removing);
  }
  return {step, target};
}

void RunFolder::add_metrics(const Json& line) {
  const fs::path path = path_ / "metrics.jsonl";
  if (metrics_ < 0) metrics_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (metrics_ < 0) fail("cannot write ", path.string(), ": ", reason(errno));
  write_all(metrics_, line.dump() + "\n", path);
  ++lines_;
}

Json RunFolder::rewind_metrics(const std::optional<Checkpoint>& checkpoint) {
  const fs::path path = path_ / "metrics.jsonl";
  lines_ = 0;
  if (checkpoint) {
    const fs::path trainer = checkpoint->path / "trainer.json";
    const Json json = read_json(trainer);
    lines_ = read_count(json, "metrics_lines", trainer);
    if (const int64_t step = read_count(json, "step", trainer); step != checkpoint->step) {
      fail(trainer.string(), ": step is ", step, ", expected ", checkpoint->step, " as the folder's name says");
    }
  }
  std::error_code error;
  const std::string bytes = fs::exists(path, error) ? read_file(path) : "";
  size_t end = 0, last = 0;
  for (int64_t line = 0; line < lines_; ++line) {
    last = end;
    const size_t newline = bytes.find('\n', end);
    if (newline == bytes.npos) {
      fail(path.string(), ": ", line, " lines, the checkpoint has seen ", lines_, "; the file is damaged");
    }
    end = newline + 1;
  }
  if (end < bytes.size() && ::truncate(path.c_str(), static_cast<off_t>(end)) != 0) {
    fail("cannot write ", path.string(), ": ", reason(errno));
  }
  if (lines_ == 0) return Json();
  const Json line = Json::parse(bytes.substr(last, end - last), nullptr, /*allow_exceptions=*/false);
  if (line.is_discarded()) fail(path.string(), ": line ", lines_, " is no JSON; the file is damaged");
  return line;
}

}  // namespace lineal
