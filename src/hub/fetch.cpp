#include "base/error.h"
#include "hub/blob.h"
#include "hub/hub.h"

#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <sys/statvfs.h>

#include <algorithm>
#include <future>

namespace parallm {

namespace {

namespace fs = std::filesystem;

/** Ends the other threads' work where one throws. */
struct StopUnlessDone {
  FetchState& state;
  bool done = false;
  ~StopUnlessDone() {
    if (!done) {
      state.stop();
    }
  }
};

/** The model in the cache, where it is whole. */
std::optional<fs::path> cached(const Cache& cache, const HubName& name) {
  const auto commit = cache.commit(name.revision);
  if (!commit) {
    return {};
  }
  if (name.gguf()) {
    const auto found = matching_gguf(name, cache.files(*commit));
    return found.size() == 1 ? std::optional(cache.snapshot(*commit) / found.front()) : std::nullopt;
  }
  return cache.lacks(*commit).empty() ? std::optional(cache.snapshot(*commit)) : std::nullopt;
}

[[noreturn]] void fail_offline(const Cache& cache, const HubName& name) {
  const auto commit = cache.commit(name.revision);
  std::string lack = "it is not there";
  if (commit && fs::exists(cache.snapshot(*commit)) && !name.gguf()) {
    lack = fmt::format("there it lacks {}", fmt::join(cache.lacks(*commit), ", "));
  }
  fail(
      Kind::unavailable,
      "[hub] HF_HUB_OFFLINE is set, so that {} at {} must be whole in the cache {}: {}",
      name.repo,
      name.revision,
      cache.folder().string(),
      lack);
}

std::string size_text(uint64_t bytes) {
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6) : fmt::format("{:.2f} GB", bytes / 1e9);
}

void check_disk(const HubOptions& options, const Cache& cache, const HubName& name, const std::vector<HubFile>& files) {
  uint64_t needed = 0;
  for (const HubFile& file : files) {
    std::error_code error;
    const uint64_t there = fs::file_size(cache.blob(file.etag).string() + ".incomplete", error);
    needed += *file.size - (error ? 0 : std::min(there, *file.size));
  }
  fs::path folder = options.cache;
  while (!fs::exists(folder) && folder.has_relative_path()) {
    folder = folder.parent_path();
  }
  struct statvfs disk {};
  if (statvfs(folder.empty() ? "." : folder.c_str(), &disk) != 0) {
    return; // writing will tell
  }
  const uint64_t free = uint64_t{disk.f_bavail} * disk.f_frsize;
  if (needed > free) {
    fail(
        Kind::unavailable,
        "[hub] {} needs {} more in {}, and the disk has {} free: make room, or name another folder by HF_HUB_CACHE",
        name.repo,
        size_text(needed),
        options.cache,
        size_text(free));
  }
}

/** Several files at once; the first failure ends the others. */
void fetch_blobs(const BlobSource& source, const Cache& cache, const std::vector<HubFile>& files, FetchState& state) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    StopUnlessDone guard{state};
    Http http(source.options.endpoint, source.options.token, state.stopped());
    for (size_t i = next++; i < files.size() && !state.stopped(); i = next++) {
      fetch_blob(source, cache, files[i], http, state);
      ++state.files_done;
    }
    guard.done = true;
  };
  std::vector<std::future<void>> workers;
  const size_t count = std::min<size_t>(std::max(1, source.options.parallel), files.size());
  for (size_t i = 0; i < count; ++i) {
    workers.push_back(std::async(std::launch::async, work));
  }
  for (auto& worker : workers) {
    worker.wait();
  }
  for (auto& worker : workers) {
    worker.get();
  }
}

/** Each content once, the largest first: the last file should not be the longest to wait for. */
std::vector<HubFile> contents(std::vector<HubFile> files) {
  std::sort(files.begin(), files.end(), [](const HubFile& a, const HubFile& b) {
    return std::tie(*b.size, a.etag) < std::tie(*a.size, b.etag);
  });
  files.erase(
      std::unique(files.begin(), files.end(), [](const HubFile& a, const HubFile& b) { return a.etag == b.etag; }),
      files.end());
  return files;
}

/** The files that the cache lacks, into it; then their links, so that a snapshot with weights in it is whole. */
void bring(const BlobSource& source, const Cache& cache, std::vector<HubFile> files, Http& http, FetchState& state) {
  for (HubFile& file : files) {
    if (file.etag.empty() || !file.size) {
      Question question = file_question(source.options, source.name, source.commit, file);
      question.head = true;
      const Reply head = ask_patiently(http, question, source.options.tries, state);
      if (!head.failure.empty() || head.status >= 400) {
        explain(head, source.options, source.name, file.path);
      }
      complete(file, head, source.name);
    }
  }
  std::vector<HubFile> missing;
  for (const HubFile& file : contents(files)) {
    if (!cache.has_blob(file)) {
      missing.push_back(file);
      state.total_bytes += *file.size;
    }
  }
  state.files = missing.size();
  check_disk(source.options, cache, source.name, missing);
  fetch_blobs(source, cache, missing, state);
  if (state.stopped()) {
    return;
  }
  const auto weights = [](const HubFile& file) { return file.path.ends_with(".safetensors"); };
  std::stable_partition(files.begin(), files.end(), [&](const HubFile& file) { return !weights(file); });
  for (const HubFile& file : files) {
    cache.link(source.commit, file);
  }
}

fs::path fetch(const HubName& name, const HubOptions& options, FetchState& state) {
  const Cache cache(options.cache, name.repo);
  const auto there = cached(cache, name);
  if (there && (options.offline || is_commit(name.revision))) {
    return *there;
  }
  if (options.offline) {
    fail_offline(cache, name);
  }
  Http http(options.endpoint, options.token, state.stopped());
  const Reply reply = ask_patiently(http, listing_question(options, name), there ? 1 : options.tries, state);
  if (!reply.ok()) {
    if (!there || reply.header("x-error-code") == "RevisionNotFound") {
      explain(reply, options, name);
    }
    state.warn(fmt::format(
        "could not ask {} about {} ({}): taking what the cache has of it, which may be older: {}",
        options.endpoint,
        name.repo,
        reason(reply),
        there->string()));
    return *there;
  }
  const Listing listing = read_listing(reply.body, name);
  const std::vector<HubFile> wanted = wanted_files(name, listing.files);
  std::vector<HubFile> missing;
  for (const HubFile& file : wanted) {
    if (!cache.has(listing.commit, file)) {
      missing.push_back(file);
    }
  }
  if (!missing.empty()) {
    bring({options, name, listing.commit}, cache, missing, http, state);
    if (state.stopped()) {
      return {}; // nobody waits for it any more
    }
  }
  if (!cache.set_commit(name.revision, listing.commit)) { // a cache that is only read works all the same
    state.warn(fmt::format("could not write down {}'s commit in {}", name.revision, cache.folder().string()));
  }
  const fs::path snapshot = cache.snapshot(listing.commit);
  return name.gguf() ? snapshot / wanted.front().path : snapshot;
}

} // namespace

std::string fetch_model(const std::string& name, const HubOptions& options, const OnFetch& on_fetch) {
  const auto parsed = parse_hub_name(name);
  if (!parsed) {
    fail(
        Kind::invalid,
        "[hub] a model on the hub is named ORG/NAME, ORG/NAME@REVISION, ORG/NAME/FILE.gguf or ORG/NAME:TAG; got {}",
        name);
  }
  FetchState state;
  const auto tell = [&] {
    FetchProgress progress{state.files, state.files_done, state.bytes, state.found_bytes, state.total_bytes, ""};
    for (std::string& line : state.take_warnings()) {
      progress.warning = std::move(line);
      if (on_fetch) {
        on_fetch(progress);
      } else {
        spdlog::warn("{}", progress.warning);
      }
    }
    progress.warning.clear();
    if (on_fetch && progress.files > 0) {
      on_fetch(progress);
    }
  };
  auto work = std::async(std::launch::async, [&] { return fetch(*parsed, options, state); });
  StopUnlessDone guard{state};
  while (work.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
    tell();
  }
  tell();
  guard.done = true;
  return work.get().string();
}

} // namespace parallm
