#include "memory/store.h"

#include "base/error.h"
#include "base/random_hex.h"
#include "memory/records.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

namespace parallm {

namespace {

constexpr size_t most_name_bytes = 512, most_dimensions = 16'000;
constexpr size_t most_key_bytes = 128, most_keys = 64, most_metadata_bytes = 16 << 10;

void check_name(const std::string& name, const std::string& field) {
  if (name.empty() || name.size() > most_name_bytes) {
    fail_field(field, "[memory] {} must have 1 to {} bytes; got {}", field, most_name_bytes, name.size());
  }
  for (const unsigned char c : name) {
    if (c < 32 || c == 127) {
      fail_field(field, "[memory] {} must not hold control characters", field);
    }
  }
}

void check_embedding(const std::vector<float>& embedding) {
  double squares = 0;
  for (const float x : embedding) {
    squares += static_cast<double>(x) * x;
  }
  if (!embedding.empty() && (!std::isfinite(squares) || squares == 0 || embedding.size() > most_dimensions)) {
    fail_field("embedding", "[memory] an embedding must have at most {} finite numbers, not all zero", most_dimensions);
  }
}

void check_metadata(const json::object& metadata, const std::string& field) {
  if (metadata.size() > most_keys) {
    fail_field(field, "[memory] {} may have {} keys; got {}", field, most_keys, metadata.size());
  }
  for (const auto& [key, value] : metadata) {
    if (key.empty() || key.size() > most_key_bytes || std::string_view(key).find('\0') != std::string_view::npos) {
      fail_field(field, "[memory] a key of {} must have 1 to {} bytes, none of them 0", field, most_key_bytes);
    }
    if (!(value.is_string() || value.is_number() || value.is_bool())) {
      fail_field(
          field,
          "[memory] {}.{} must be a string, a number or a boolean; got {}",
          field,
          std::string_view(key),
          json_kind(value));
    }
    if (value.is_string() && value.get_string().find('\0') != json::string::npos) {
      fail_field(field, "[memory] {}.{} must not hold a zero byte", field, std::string_view(key));
    }
  }
  if (const size_t bytes = json_text(metadata).size(); bytes > most_metadata_bytes) {
    fail_field(field, "[memory] {} may take {} bytes as JSON; got {}", field, most_metadata_bytes, bytes);
  }
}

} // namespace

Store::Store(std::unique_ptr<Records> records, Tensors tensors)
    : records_(std::move(records)), tensors_(std::move(tensors)) {
  sweep_at_times();
}

Store::~Store() = default;

/** Once an hour: tensors of puts that failed, and of documents that other machines erased. */
void Store::sweep_at_times() {
  using std::chrono::seconds;
  constexpr int64_t hour = 3600;
  const int64_t now = std::chrono::duration_cast<seconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  int64_t last = swept_;
  if ((last == 0 || now - last > hour) && swept_.compare_exchange_strong(last, now)) {
    tensors_.sweep([this](const std::vector<std::string>& uids) { return records_->known(uids); });
  }
}

void Store::check(const Document& document, const std::string& where) {
  check_name(document.space, "namespace");
  check_name(document.id, where + "id");
  check_embedding(document.embedding);
  check_metadata(document.metadata, where + "metadata");
  if (document.text.find('\0') != std::string::npos || document.header.find('\0') != std::string::npos) {
    fail_field(where + "text", "[memory] a text must not hold a zero byte"); // PostgreSQL keeps none
  }
}

void Store::check_spaces(const std::vector<std::string>& names, const std::string& field) {
  std::set<std::string_view> seen;
  for (const std::string& name : names) {
    check_name(name, field);
    if (!seen.insert(name).second) {
      fail_field(field, "[memory] the namespace {} is named twice", name);
    }
  }
}

void Store::check_ids(const std::vector<std::string>& names, const std::string& field) {
  for (const std::string& name : names) {
    check_name(name, field);
  }
}

std::string Store::put(Document document, const Pieces& pieces, IfExists if_exists) {
  check(document);
  sweep_at_times();
  document.uid = random_hex(32);
  document.created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  if (!pieces.empty()) {
    tensors_.put(document.uid, document.fingerprint, pieces); // of no use to anyone until the record is there
  }
  const Records::Put done = records_->put(document, if_exists);
  if (done.exists) {
    tensors_.erase(document.uid);
    throw Error(
        Kind::conflict, "id", fmt::format("[memory] {} is there already in namespace {}", document.id, document.space));
  }
  if (!done.replaced.empty()) {
    tensors_.erase(done.replaced);
  }
  return document.uid;
}

std::optional<Document> Store::get(const std::string& space, const std::string& id) {
  check_name(space, "namespace");
  check_name(id, "id");
  return records_->get(space, id);
}

Page Store::list(const std::string& space, const std::string& after, size_t limit, const Filter& filter) {
  check_name(space, "namespace");
  if (!after.empty()) {
    check_name(after, "after");
  }
  if (limit == 0) {
    fail_field("limit", "[memory] limit must be at least 1");
  }
  return records_->list(space, after, limit, filter);
}

std::vector<Namespace> Store::namespaces() {
  std::vector<Namespace> all = records_->namespaces();
  std::sort(all.begin(), all.end(), [](const Namespace& a, const Namespace& b) { return a.name < b.name; });
  return all;
}

Selection Store::select(const Selector& selector) {
  if (selector.spaces.empty()) {
    fail_field("namespaces", "[memory] at least one namespace must be named");
  }
  check_spaces(selector.spaces, "namespaces");
  check_ids(selector.ids, "ids");
  check_embedding(selector.embedding);
  if (selector.top > 0 && selector.embedding.empty()) {
    fail_field("top", "[memory] the most similar are asked for, to no embedding");
  }
  return records_->select(selector);
}

size_t Store::erase(const std::string& space, const std::vector<std::string>& ids, const Filter& filter) {
  check_name(space, "namespace");
  for (const std::string& id : ids) {
    check_name(id, "id");
  }
  const std::vector<std::string> gone = records_->erase(space, ids, filter);
  for (const std::string& uid : gone) {
    tensors_.erase(uid);
  }
  return gone.size();
}

uint64_t Store::version(const std::string& space) {
  check_name(space, "namespace");
  return records_->version(space);
}

FoundTensors Store::tensors(const std::string& uid, const std::string& fingerprint) {
  return tensors_.find(uid, fingerprint);
}

void Store::put_tensors(const std::string& uid, const std::string& fingerprint, const Pieces& pieces) {
  tensors_.put(uid, fingerprint, pieces);
  if (!records_->known({uid}).front()) { // erased meanwhile
    tensors_.erase(uid);
  }
}

uint64_t Store::tensor_bytes() const {
  return tensors_.bytes();
}

} // namespace parallm
