#include "memory/tensors.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "memory/durable.h"

#include <algorithm>
#include <optional>

namespace parallm {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view ending = ".safetensors";
constexpr size_t fingerprint_digits = 16, hash_digits = 64, uid_digits = 32;
constexpr auto young = std::chrono::hours(1);

bool is_uid(const std::string& text) {
  return text.size() == uid_digits && text.find_first_not_of("0123456789abcdef") == text.npos;
}

fs::path folder_of(const fs::path& folder, const std::string& uid) {
  if (!is_uid(uid)) { // it becomes a path
    fail(Kind::invalid, "[memory] a uid has {} hex digits; got {}", uid_digits, uid);
  }
  return folder / uid.substr(0, 2) / uid;
}

std::string short_name(const std::string& fingerprint) {
  return sha256(fingerprint).substr(0, fingerprint_digits);
}

struct Kept {
  fs::path path;
  std::string fingerprint, hash;
  fs::file_time_type time;
};

/** The files of a version, the newest first. */
std::vector<Kept> kept_in(const fs::path& folder) {
  std::vector<Kept> kept;
  std::error_code error;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::end(entry); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.size() == fingerprint_digits + 1 + hash_digits + ending.size() && name.ends_with(ending)) {
      std::error_code gone;
      kept.push_back(
          {entry->path(),
           name.substr(0, fingerprint_digits),
           name.substr(fingerprint_digits + 1, hash_digits),
           entry->last_write_time(gone)});
    }
  }
  std::sort(kept.begin(), kept.end(), [](const Kept& a, const Kept& b) { return a.time > b.time; });
  return kept;
}

/** What a process that was killed has half written. */
void remove_unfinished(const fs::path& folder, fs::file_time_type before) {
  std::error_code error;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::end(entry); entry.increment(error)) {
    std::error_code gone;
    if (entry->path().extension() == ".tmp" && entry->last_write_time(gone) < before) {
      fs::remove(entry->path(), gone);
    }
  }
}

} // namespace

Tensors::Tensors(fs::path folder) : folder_(std::move(folder)) {
  make_folders_durably(folder_);
}

void Tensors::put(const std::string& uid, const std::string& fingerprint, const Pieces& pieces) {
  Hash hash;
  for (const std::string_view piece : pieces) {
    hash.add(piece);
  }
  const fs::path folder = folder_of(folder_, uid);
  make_folders_durably(folder);
  const std::string mine = short_name(fingerprint);
  const fs::path path = folder / fmt::format("{}-{}{}", mine, hash.hex(), ending);
  write_durably(path, pieces);
  std::string other; // the newest fingerprint but this one
  for (const Kept& kept : kept_in(folder)) {
    if (other.empty() && kept.fingerprint != mine) {
      other = kept.fingerprint;
    }
    if (kept.path != path && kept.fingerprint != other) {
      std::error_code gone;
      fs::remove(kept.path, gone);
    }
  }
}

FoundTensors Tensors::find(const std::string& uid, const std::string& fingerprint) const {
  const fs::path folder = folder_of(folder_, uid);
  const std::string mine = short_name(fingerprint);
  FoundTensors found;
  for (const Kept& kept : kept_in(folder)) {
    if (kept.fingerprint != mine) {
      continue;
    }
    const auto file = MappedFile::find(kept.path.string());
    if (file) {
      Hash hash;
      hash.add(file->text(0, file->size()));
      if (hash.hex() == kept.hash) {
        return {FoundTensors::State::present, file};
      }
    } else if (!fs::exists(kept.path)) { // erased since the folder was read
      continue;
    }
    spdlog::error("[memory] {} is not what was written: its SHA-256 differs; it is passed over", kept.path.string());
    found.state = FoundTensors::State::altered;
  }
  return found;
}

void Tensors::erase(const std::string& uid) {
  std::error_code gone;
  fs::remove_all(folder_of(folder_, uid), gone);
}

void Tensors::sweep(const std::function<std::vector<bool>(const std::vector<std::string>&)>& known) {
  constexpr size_t at_once = 1000;
  std::vector<std::string> asked;
  const auto ask = [&] {
    const std::vector<bool> answers = asked.empty() ? std::vector<bool>() : known(asked);
    for (size_t i = 0; i < asked.size(); ++i) {
      if (!answers[i]) {
        erase(asked[i]);
      }
    }
    asked.clear();
  };
  std::error_code error;
  const auto now = fs::file_time_type::clock::now();
  for (auto part = fs::directory_iterator(folder_, error); !error && part != fs::end(part); part.increment(error)) {
    std::error_code inner;
    for (auto entry = fs::directory_iterator(part->path(), inner); !inner && entry != fs::end(entry);
         entry.increment(inner)) {
      std::error_code gone;
      const std::string name = entry->path().filename().string();
      remove_unfinished(entry->path(), now - young);
      const auto written = entry->last_write_time(gone);
      if (!gone && is_uid(name) && now - written > young) {
        asked.push_back(name);
      }
    }
    if (asked.size() >= at_once) {
      ask();
    }
  }
  ask();
}

uint64_t Tensors::bytes() const {
  uint64_t sum = 0;
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(folder_, error); !error && entry != fs::end(entry);
       entry.increment(error)) {
    std::error_code gone;
    const uint64_t size = entry->is_regular_file(gone) ? entry->file_size(gone) : 0;
    sum += gone ? 0 : size;
  }
  return sum;
}

} // namespace parallm
