#include "memory/files.h"

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "memory/backends.h"
#include "memory/durable.h"
#include "memory/record_json.h"
#include "memory/similarity.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <set>

namespace parallm {

namespace fs = std::filesystem;

namespace {

constexpr const char* format = "mlx_parallm memory 1";
constexpr size_t digits = 16; // of a line's hash
constexpr uint64_t small_log = 1 << 20; // bytes; not worth writing anew
constexpr int most_tries = 100;
constexpr auto young = std::chrono::hours(1);

/** A line of the log, and all of a contents file. */
std::string hashed_line(const std::string& text) {
  return sha256(text).substr(0, digits) + ' ' + text + '\n';
}

/** What hashed_line was made of; nothing where the digits don't match. `line` is without its end. */
std::optional<std::string_view> text_of_line(std::string_view line) {
  const bool good = line.size() > digits && sha256(line.substr(digits + 1)).substr(0, digits) == line.substr(0, digits);
  return good ? std::optional(line.substr(digits + 1)) : std::nullopt;
}

std::string log_line(const json::value& value) {
  return hashed_line(json::serialize(value));
}

std::string put_line(uint64_t n, const Document& document) {
  return log_line(
      json::object{{"n", n}, {"put", record_json(document)}, {"embedding", base64(vector_bytes(document.embedding))}});
}

Document light(const Document& document, bool embedding) {
  Document out = document;
  out.text.clear();
  out.token_ids.clear();
  if (!embedding) {
    out.embedding.clear();
  }
  return out;
}

} // namespace

/** While it lives no other process and no other object writes to the folder. */
struct FileRecords::Writing {
  explicit Writing(const fs::path& folder) {
    const fs::path path = folder / "lock";
    file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) {
      fail_file("open", path, errno);
    }
    int done = 0;
    do {
      done = ::flock(file, LOCK_EX);
    } while (done != 0 && errno == EINTR);
    if (done != 0) {
      const int error = errno;
      ::close(file);
      fail_file("lock", path, error);
    }
  }
  ~Writing() {
    ::close(file); // which unlocks
  }
  Writing(const Writing&) = delete;
  Writing& operator=(const Writing&) = delete;

  int file = -1;
};

FileRecords::FileRecords(fs::path folder, MakeNearest make_nearest, size_t exact)
    : folder_(std::move(folder)), make_nearest_(std::move(make_nearest)), exact_(exact) {
  make_folders_durably(folder_ / "contents");
  const Writing writing(folder_);
  if (!fs::exists(folder_ / "log")) {
    const std::string first = log_line(json::object{{"format", format}});
    write_durably(folder_ / "log", {first});
  }
  Lock lock(mutex_);
  catch_up();
  sweep();
}

FileRecords::~FileRecords() {
  if (log_ >= 0) {
    ::close(log_);
  }
}

void FileRecords::open_log() {
  const fs::path path = folder_ / "log";
  const int file = ::open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC);
  struct stat about {};
  if (file < 0 || ::fstat(file, &about) != 0) {
    const int error = errno;
    if (file >= 0) {
      ::close(file);
    }
    fail_file("open", path, error);
  }
  if (log_ >= 0) {
    ::close(log_);
  }
  log_ = file;
  log_file_ = about.st_ino;
  read_ = 0;
  lines_ = 0;
  spaces_.clear();
  uids_.clear();
}

void FileRecords::catch_up() {
  const fs::path path = folder_ / "log";
  struct stat about {};
  if (::stat(path.c_str(), &about) != 0) {
    fail_file("find", path, errno);
  }
  // Rewritten (the old file is still open, so its number isn't reused), or cut by a writer whose disk failed.
  if (log_ < 0 || about.st_ino != log_file_ || static_cast<uint64_t>(about.st_size) < read_) {
    open_log();
  }
  std::string bytes;
  bool again = false;
  constexpr size_t at_once = 1 << 20;
  for (;;) {
    const size_t before = bytes.size();
    bytes.resize(before + at_once);
    const ssize_t got = ::pread(log_, bytes.data() + before, at_once, static_cast<off_t>(read_ + before));
    if (got < 0 && errno != EINTR) {
      fail_file("read", path, errno);
    }
    bytes.resize(before + (got > 0 ? static_cast<size_t>(got) : 0));
    size_t begin = 0;
    bool good = true;
    for (size_t end = 0; good && (end = bytes.find('\n', begin)) != bytes.npos; begin = good ? end + 1 : begin) {
      good = apply(std::string_view(bytes).substr(begin, end - begin), again);
    }
    read_ += begin;
    bytes.erase(0, begin);
    if (!good) { // perhaps read while a writer removed what another left unfinished: from the beginning, once
      again = true;
      bytes.clear();
      open_log();
    } else if (got == 0) {
      return; // what is left of `bytes` is a line that is being written, or was never finished
    }
  }
}

/** False: the line is not what was written, and it is not yet certain. */
bool FileRecords::apply(std::string_view line, bool certain) {
  const auto text = text_of_line(line);
  if (!text && !certain) {
    return false;
  }
  const bool first = lines_++ == 0;
  if (!text && first) {
    fail(Kind::invalid, "[memory] {} is no log of memories", (folder_ / "log").string());
  }
  if (!text) {
    spdlog::error(
        "[memory] line {} of {} is not what was written: its hash differs; it is passed over",
        lines_,
        (folder_ / "log").string());
    return true;
  }
  const json::value value = parse_json(*text, "a line of the log");
  const json::object& change = value.as_object();
  if (first) {
    const json::value* found = change.if_contains("format");
    if (found == nullptr || *found != format) {
      fail(Kind::invalid, "[memory] {} is of another format", (folder_ / "log").string());
    }
    return true;
  }
  const auto n = change.at("n").to_number<uint64_t>();
  changes_ = std::max(changes_, n);
  if (const json::value* put = change.if_contains("put")) {
    Document document = record_of(*put);
    document.embedding = vector_of(from_base64(change.at("embedding").as_string()));
    Space& space = spaces_[document.space];
    remove_document(space, document.id);
    space.version = n;
    space.tokens += document.tokens;
    uids_.insert(document.uid);
    if (space.nearest) {
      space.nearest->add({{document.id, document.embedding}});
    }
    const std::string id = document.id;
    space.documents.emplace(id, std::move(document));
  } else if (const json::value* erase = change.if_contains("erase")) {
    Space& space = spaces_[std::string(erase->at("namespace").as_string())];
    space.version = n;
    for (const json::value& id : erase->at("ids").as_array()) {
      remove_document(space, std::string(id.as_string()));
    }
  } else if (const json::value* name = change.if_contains("namespace")) {
    spaces_[std::string(name->as_string())].version = n;
  }
  return true;
}

void FileRecords::remove_document(Space& space, const std::string& id) {
  const auto found = space.documents.find(id);
  if (found == space.documents.end()) {
    return;
  }
  space.tokens -= found->second.tokens;
  uids_.erase(found->second.uid);
  if (space.nearest) {
    space.nearest->remove(id);
  }
  space.documents.erase(found);
}

void FileRecords::append(const std::string& text) {
  const fs::path path = folder_ / "log";
  struct Undo { // what is half written, or may not be on the disk, must not be read by the next
    int file;
    uint64_t size;
    bool wanted = true;
    ~Undo() {
      if (wanted) {
        (void)!::ftruncate(file, static_cast<off_t>(size));
      }
    }
  };
  Undo undo{log_, read_};
  if (::ftruncate(log_, static_cast<off_t>(read_)) != 0) { // a line that a killed writer left unfinished
    fail_file("write", path, errno);
  }
  write_all(log_, text, path);
  sync_file(log_, path);
  undo.wanted = false;
  catch_up();
  if (read_ > small_log) {
    uint64_t alive = 0;
    for (const auto& [name, space] : spaces_) {
      alive += 1 + space.documents.size();
    }
    if (lines_ > 2 * alive) {
      rewrite();
    }
  }
}

void FileRecords::rewrite() {
  std::vector<std::string> lines = {log_line(json::object{{"format", format}})};
  for (const auto& [name, space] : spaces_) {
    for (const auto& [id, document] : space.documents) {
      lines.push_back(put_line(space.version, document));
    }
    lines.push_back(log_line(json::object{{"n", space.version}, {"namespace", name}}));
  }
  write_durably(folder_ / "log", {lines.begin(), lines.end()});
  catch_up();
}

Records::Put FileRecords::put(const Document& document, IfExists if_exists) {
  const fs::path path = contents_path(document.uid);
  make_folders_durably(path.parent_path());
  const std::string contents = hashed_line(contents_json(document));
  write_durably(path, {contents});
  Put done;
  {
    Lock lock(mutex_);
    const Writing writing(folder_);
    catch_up();
    const auto space = spaces_.find(document.space);
    if (space != spaces_.end()) {
      const auto found = space->second.documents.find(document.id);
      done.replaced = found == space->second.documents.end() ? "" : found->second.uid;
    }
    done.exists = !done.replaced.empty() && if_exists == IfExists::fail;
    if (!done.exists) {
      append(put_line(changes_ + 1, document));
    }
  }
  erase_contents(done.exists ? document.uid : done.replaced);
  return done;
}

std::optional<Document> FileRecords::get(const std::string& space, const std::string& id) {
  for (int tries = 0; tries < most_tries; ++tries) {
    Document document;
    {
      Lock lock(mutex_);
      catch_up();
      const auto found = spaces_.find(space);
      const bool there = found != spaces_.end() && found->second.documents.contains(id);
      if (!there) {
        return {};
      }
      document = found->second.documents.at(id);
    }
    const Reading reading = read_document(document);
    if (reading == Reading::done) {
      return document;
    }
    if (reading == Reading::altered) {
      break;
    }
  }
  fail(Kind::internal, "[memory] the contents of {} in namespace {} are lost or altered", id, space);
}

FileRecords::Reading FileRecords::read_document(Document& document) const {
  const fs::path path = contents_path(document.uid);
  const auto file = MappedFile::find(path.string());
  if (!file && !fs::exists(path)) {
    return Reading::gone;
  }
  const auto text = file ? text_of_line(file->text(0, file->size() - 1)) : std::nullopt;
  if (!text) {
    spdlog::error("[memory] {} is not what was written: its hash differs; its document is passed over", path.string());
    return Reading::altered;
  }
  read_contents(*text, document);
  return Reading::done;
}

Page FileRecords::list(const std::string& name, const std::string& after, size_t limit, const Filter& filter) {
  Lock lock(mutex_);
  catch_up();
  Page page;
  const auto space = spaces_.find(name);
  if (space == spaces_.end()) {
    return page;
  }
  const auto& documents = space->second.documents;
  for (auto at = documents.upper_bound(after); at != documents.end(); ++at) {
    if (!matches(filter, at->second.metadata)) {
      continue;
    }
    if (page.documents.size() == limit) {
      page.more = true;
      break;
    }
    page.documents.push_back(light(at->second, false));
  }
  return page;
}

std::vector<Namespace> FileRecords::namespaces() {
  Lock lock(mutex_);
  catch_up();
  std::vector<Namespace> all;
  for (const auto& [name, space] : spaces_) {
    if (!space.documents.empty()) {
      all.push_back({name, space.documents.size(), space.tokens, space.version});
    }
  }
  return all;
}

void FileRecords::find_all(const Space& space, const Selector& selector, std::vector<Found>& found) {
  const auto take = [&](const Document& document) {
    const bool ranked = !selector.embedding.empty();
    if ((!ranked || document.embedding.size() == selector.embedding.size()) &&
        matches(selector.filter, document.metadata)) {
      found.push_back({ranked ? cosine(document.embedding, selector.embedding) : 0.0f, &document});
    }
  };
  if (selector.ids.empty()) {
    for (const auto& [id, document] : space.documents) {
      take(document);
    }
    return;
  }
  for (const std::string& id : std::set<std::string>(selector.ids.begin(), selector.ids.end())) {
    if (const auto at = space.documents.find(id); at != space.documents.end()) {
      take(at->second);
    }
  }
}

/** By the index, where it serves this selector and gives enough; else false. */
bool FileRecords::find_nearest(Space& space, const Selector& selector, std::vector<Found>& found) {
  if (!make_nearest_ || selector.top == 0 || !selector.ids.empty() || space.documents.size() <= exact_) {
    return false;
  }
  if (!space.nearest) {
    space.nearest = std::make_unique<NearestDocuments>(make_nearest_);
    std::vector<NearestDocuments::Item> items;
    for (const auto& [id, document] : space.documents) {
      items.push_back({id, document.embedding});
    }
    space.nearest->add(items);
  }
  constexpr size_t spare = 4; // the index orders only about rightly, and a filter passes over some
  std::vector<Found> proposed;
  Selector those = selector;
  those.ids = space.nearest->search(selector.embedding, selector.top * spare);
  if (!those.ids.empty()) {
    find_all(space, those, proposed);
  }
  if (proposed.size() < selector.top) {
    return false;
  }
  found.insert(found.end(), proposed.begin(), proposed.end());
  return true;
}

Selection FileRecords::select(const Selector& selector) {
  for (bool alone : {false, false, false, true}) {
    Selection selection;
    std::unique_lock lock(mutex_);
    std::optional<Writing> writing; // others change faster than their contents are read: once they wait
    if (alone) {
      writing.emplace(folder_);
    }
    catch_up();
    std::vector<Found> found;
    for (const std::string& name : selector.spaces) {
      const auto space = spaces_.find(name);
      selection.versions.push_back(space == spaces_.end() ? 0 : space->second.version);
      if (space != spaces_.end() && !find_nearest(space->second, selector, found)) {
        find_all(space->second, selector, found);
      }
    }
    order_hits(found, selector.top, [](const Found& of) -> const Document& { return *of.document; });
    for (const Found& one : found) {
      selection.hits.push_back({light(*one.document, selector.contents), one.similarity});
    }
    if (!alone) {
      lock.unlock();
    }
    bool gone = false;
    std::erase_if(selection.hits, [&](Hit& hit) {
      const Reading reading = selector.contents && !gone ? read_document(hit.document) : Reading::done;
      gone = gone || reading == Reading::gone;
      return reading == Reading::altered;
    });
    if (!gone) {
      return selection;
    }
  }
  fail(Kind::internal, "[memory] documents of {} have lost their contents", selector.spaces[0]);
}

std::vector<std::string>
FileRecords::erase(const std::string& name, const std::vector<std::string>& ids, const Filter& filter) {
  std::vector<std::string> uids;
  {
    Lock lock(mutex_);
    const Writing writing(folder_);
    catch_up();
    const auto space = spaces_.find(name);
    json::array gone;
    const auto take = [&](const Document& document) {
      if (matches(filter, document.metadata)) {
        gone.emplace_back(document.id);
        uids.push_back(document.uid);
      }
    };
    if (space != spaces_.end() && ids.empty()) {
      for (const auto& [id, document] : space->second.documents) {
        take(document);
      }
    } else if (space != spaces_.end()) {
      for (const std::string& id : std::set<std::string>(ids.begin(), ids.end())) {
        if (const auto found = space->second.documents.find(id); found != space->second.documents.end()) {
          take(found->second);
        }
      }
    }
    if (!gone.empty()) {
      append(log_line(json::object{{"n", changes_ + 1}, {"erase", {{"namespace", name}, {"ids", gone}}}}));
    }
  }
  for (const std::string& uid : uids) {
    erase_contents(uid);
  }
  return uids;
}

uint64_t FileRecords::version(const std::string& name) {
  Lock lock(mutex_);
  catch_up();
  const auto space = spaces_.find(name);
  return space == spaces_.end() ? 0 : space->second.version;
}

std::vector<bool> FileRecords::known(const std::vector<std::string>& uids) {
  Lock lock(mutex_);
  catch_up();
  std::vector<bool> known;
  for (const std::string& uid : uids) {
    known.push_back(uids_.contains(uid));
  }
  return known;
}

fs::path FileRecords::contents_path(const std::string& uid) const {
  return folder_ / "contents" / uid.substr(0, 2) / (uid + ".json");
}

void FileRecords::erase_contents(const std::string& uid) const {
  std::error_code gone;
  if (!uid.empty()) {
    fs::remove(contents_path(uid), gone);
  }
}

/** Removes contents of no version, an hour old: a writer was killed before its line, or after that of the next version.
 */
void FileRecords::sweep() {
  std::error_code error;
  const auto now = fs::file_time_type::clock::now();
  for (auto entry = fs::recursive_directory_iterator(folder_ / "contents", error); !error && entry != fs::end(entry);
       entry.increment(error)) {
    std::error_code gone;
    if (entry->is_regular_file(gone) && !uids_.contains(entry->path().stem().string()) &&
        now - entry->last_write_time(gone) > young && !gone) {
      fs::remove(entry->path(), gone);
    }
  }
}

std::unique_ptr<Records> open_files(Address& address) {
  if (address.path.empty()) {
    fail(Kind::invalid, "[memory] files: needs a folder, as files:/path");
  }
  return std::make_unique<FileRecords>(address.path, MakeNearest(), 0);
}

} // namespace parallm
