#include "data/sources.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>

#include "core/error.h"
#include "core/run_mark.h"
#include "data/byte_stream.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBinaryCheck = 8192;  // as grep and git look for a NUL

bool ends_with(const std::string& name, std::string_view end) {
  return name.size() > end.size() && std::string_view(name).substr(name.size() - end.size()) == end;
}

Source describe(const std::string& path, const struct stat& status, Format format) {
  Source source;
  source.path = path;
  source.gzip = ends_with(path, ".gz");
  const std::string name = source.gzip ? path.substr(0, path.size() - 3) : path;
  source.json_lines = ends_with(name, ".jsonl");
  const bool fasta = ends_with(name, ".fasta") || ends_with(name, ".fa") || ends_with(name, ".faa");
  source.format = fasta ? Format::fasta : format;
  source.regular = S_ISREG(status.st_mode);
  source.size = source.regular ? status.st_size : 0;
  source.modified_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
  return source;
}

bool is_binary(const Source& source) {
  auto bytes = open_bytes(source.path);
  if (source.gzip) bytes = decompress_gzip(std::move(bytes), source.path);
  char head[kBinaryCheck];
  const char* end = head + bytes->read(head, sizeof head);
  return std::find(static_cast<const char*>(head), end, '\0') != end;
}

class Walk {
 public:
  explicit Walk(Format format) : format_(format) {}

  std::vector<Source> sources;

  void folder(const fs::path& path, const struct stat& status) {
    if (!visited_.emplace(status.st_dev, status.st_ino).second) return;
    std::error_code error;
    std::vector<fs::path> entries;
    for (fs::directory_iterator at(path, error), end; !error && at != end; at.increment(error)) {
      if (at->path().filename().native().front() != '.') entries.push_back(at->path());
    }
    if (error) fail("cannot read folder ", path.string(), ": ", error.message());
    std::sort(entries.begin(), entries.end(),
              [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
    for (const auto& entry : entries) {
      struct stat found;
      if (::stat(entry.c_str(), &found) != 0) continue;  // a link to nothing
      if (S_ISDIR(found.st_mode)) {
        if (!is_run(entry)) folder(entry, found);
      } else if (S_ISREG(found.st_mode) && found.st_size > 0 && visited_.emplace(found.st_dev, found.st_ino).second) {
        const Source source = describe(entry.string(), found, format_);
        if (format_ == Format::images || !is_binary(source)) sources.push_back(source);
      }
    }
  }

 private:
  Format format_;
  std::set<std::pair<dev_t, ino_t>> visited_;
};

}  // namespace

std::vector<Source> find_sources(const std::vector<std::string>& paths, Format format) {
  if (paths.empty()) fail("no text given; name files, folders, or - for standard input");
  std::vector<Source> sources;
  for (const auto& path : paths) {
    if (path == "-") {
      sources.push_back({.path = "-", .format = format, .regular = false});
      continue;
    }
    struct stat status;
    if (::stat(path.c_str(), &status) != 0) {
      fail("cannot read ", path, ": ", reason(errno), "; expected a file, a folder, or - for standard input");
    }
    if (S_ISDIR(status.st_mode)) {
      Walk walk(format);
      walk.folder(path, status);
      if (walk.sources.empty()) {
        fail(path,
             ": no text in this folder; hidden, empty and binary files do not count, expected at least one other");
      }
      sources.insert(sources.end(), walk.sources.begin(), walk.sources.end());
    } else {
      sources.push_back(describe(path, status, format));
      if (sources.back().regular && status.st_size == 0) fail(path, ": the file is empty, expected text");
    }
  }
  return sources;
}

}  // namespace lineal
