#include "hub/api.h"

#include "base/error.h"
#include "base/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace parallm {

namespace {

constexpr double longest_wait = 300; // seconds; who asks for more is not waited for
constexpr double longest_backoff = 30;

std::string text_of(const json::object& object, const char* key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : "";
}

std::optional<uint64_t> size_of(const json::object& object) {
  const auto* value = object.if_contains("size");
  if (value == nullptr || !value->is_int64() || value->as_int64() < 0) {
    return {};
  }
  return static_cast<uint64_t>(value->as_int64());
}

/** An etag becomes a file's name: W/"abc" is abc. */
std::string file_name_of(std::string etag, const HubName& name, const std::string& path) {
  if (etag.starts_with("W/")) {
    etag.erase(0, 2);
  }
  etag.erase(std::remove(etag.begin(), etag.end(), '"'), etag.end());
  const bool safe = !etag.empty() && etag.size() <= 200 && etag.front() != '.' &&
      std::all_of(etag.begin(), etag.end(), [](unsigned char c) {
        return c < 128 && (std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.');
      });
  if (!safe) {
    fail(
        Kind::invalid,
        "[hub] the etag of {} in {} is no hash; got {}",
        path,
        name.repo,
        json_excerpt(json::value(etag)));
  }
  return etag;
}

HubFile read_file_entry(const json::value& value, const HubName& name) {
  const auto* entry = value.if_object();
  HubFile file{.path = entry == nullptr ? "" : text_of(*entry, "rfilename")};
  if (!is_safe_path(file.path)) {
    fail(Kind::invalid, "[hub] a file's name in {} leads out of its folder; got {}", name.repo, json_excerpt(value));
  }
  file.etag = text_of(*entry, "blobId");
  file.size = size_of(*entry);
  const auto* lfs = entry->if_contains("lfs");
  if (lfs != nullptr && lfs->is_object()) {
    file.etag = text_of(lfs->as_object(), "sha256");
    const auto size = size_of(lfs->as_object());
    file.size = size ? size : file.size;
  }
  if (!file.etag.empty()) {
    file.etag = file_name_of(file.etag, name, file.path);
  }
  return file;
}

/** What the server says in words: its header, without what could harm a terminal. */
std::string words(const Reply& reply) {
  std::string text = reply.header("x-error-message").substr(0, 300);
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; }, ' ');
  return text;
}

std::string how_to_log_in(const HubOptions& options) {
  return options.token.empty() ? "set HF_TOKEN or run `hf auth login`"
                               : fmt::format("the token in use is that of {}", options.token_source);
}

} // namespace

Question listing_question(const HubOptions& options, const HubName& name) {
  return {
      .url = fmt::format(
          "{}/api/models/{}/revision/{}?blobs=true", options.endpoint, quoted(name.repo, "/"), quoted(name.revision))};
}

Question file_question(const HubOptions& options, const HubName& name, const std::string& commit, const HubFile& file) {
  return {
      .url =
          fmt::format("{}/{}/resolve/{}/{}", options.endpoint, quoted(name.repo, "/"), commit, quoted(file.path, "/"))};
}

Listing read_listing(const std::string& body, const HubName& name) {
  const json::value value = parse_json(body, "hub's answer about " + name.repo);
  const auto* object = value.if_object();
  Listing listing;
  if (object != nullptr) {
    listing.commit = text_of(*object, "sha");
  }
  const auto* siblings = object == nullptr ? nullptr : object->if_contains("siblings");
  if (!is_commit(listing.commit) || siblings == nullptr || !siblings->is_array()) {
    fail(
        Kind::invalid,
        "[hub] the answer about {} has no commit and files: does HF_ENDPOINT name a hub? got {}",
        name.repo,
        json_excerpt(value, 200));
  }
  if (is_commit(name.revision) && listing.commit != name.revision) {
    fail(
        Kind::invalid, "[hub] {} answers for another commit than {}; got {}", name.repo, name.revision, listing.commit);
  }
  for (const json::value& entry : siblings->as_array()) {
    listing.files.push_back(read_file_entry(entry, name));
  }
  return listing;
}

void complete(HubFile& file, const Reply& head, const HubName& name) {
  const std::string& linked = head.header("x-linked-etag");
  const bool redirect = head.status >= 300;
  file.etag = file_name_of(linked.empty() ? head.header("etag") : linked, name, file.path);
  const std::string& linked_size = head.header("x-linked-size");
  const std::string& size = linked_size.empty() && !redirect ? head.header("content-length") : linked_size;
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(size.data(), size.data() + size.size(), number);
  if (size.empty() || error != std::errc() || end != size.data() + size.size()) {
    fail(Kind::invalid, "[hub] the hub does not say the size of {} in {}", file.path, name.repo);
  }
  file.size = number;
}

bool worth_another_try(const Reply& reply, int failures, int tries, const std::string& what, FetchState& state) {
  if (!reply.passing() || failures >= tries) {
    return false;
  }
  const auto asked = reply.retry_after();
  const double wait = std::max(asked.value_or(0), std::min(std::exp2(failures - 1), longest_backoff));
  if (wait > longest_wait) {
    return false;
  }
  state.warn(fmt::format("{}: {}; trying again in {:.0f} s", what, reason(reply), wait));
  return state.sleep(wait);
}

Reply ask_patiently(Http& http, const Question& question, int tries, FetchState& state) {
  for (int failures = 1;; ++failures) {
    Reply reply = http.ask(question);
    if (!worth_another_try(reply, failures, tries, question.url, state)) {
      return reply;
    }
  }
}

std::string reason(const Reply& reply) {
  if (!reply.failure.empty()) {
    return reply.failure;
  }
  const std::string said = words(reply);
  return fmt::format("status {}{}{}", reply.status, said.empty() ? "" : ": ", said);
}

void explain(const Reply& reply, const HubOptions& options, const HubName& name, const std::string& file) {
  const std::string& code = reply.header("x-error-code");
  const std::string said = words(reply);
  const std::string page = options.endpoint + '/' + name.repo;
  const std::string what = file.empty() ? name.repo : file + " of " + name.repo;
  if (!reply.failure.empty()) {
    fail(
        Kind::unavailable,
        "[hub] could not fetch {} from {}: {}; check the network and the proxy settings, then try again: what came is kept",
        what,
        options.endpoint,
        reply.failure);
  }
  if (code == "RevisionNotFound") {
    fail(Kind::not_found, "[hub] {} has no revision {}: {} lists them", name.repo, name.revision, page + "/refs");
  }
  if (code == "EntryNotFound") {
    fail(Kind::not_found, "[hub] {} has no file {} at {}", name.repo, file, name.revision);
  }
  if (code == "GatedRepo") {
    fail(
        Kind::unauthorized,
        "[hub] {} is gated: accept its terms at {} with your account, then try again with a token of that account: {}{}{}",
        name.repo,
        page,
        how_to_log_in(options),
        said.empty() ? "" : "; the hub says: ",
        said);
  }
  const bool refused_token = reply.status == 401 && !options.token.empty() && code != "RepoNotFound";
  if (refused_token) {
    fail(
        Kind::unauthorized,
        "[hub] {} refuses the token of {} (status 401{}{}): put a new one there, from {}/settings/tokens, or remove it",
        options.endpoint,
        options.token_source,
        said.empty() ? "" : ": ",
        said,
        options.endpoint);
  }
  if (code == "RepoNotFound" || reply.status == 404 || reply.status == 401) { // 401 hides what is private
    fail(
        Kind::not_found,
        "[hub] {} has no model {} (status {}); if it is private, you need a token that may read it: {}; a local model is "
        "named by the path of its file or folder, and there is none of this name",
        options.endpoint,
        name.repo,
        reply.status,
        how_to_log_in(options));
  }
  if (reply.status == 403) {
    fail(
        Kind::unauthorized,
        "[hub] {} does not let you read {} (status 403{}{}): {}, and see {}",
        options.endpoint,
        what,
        said.empty() ? "" : ": ",
        said,
        how_to_log_in(options),
        page);
  }
  if (reply.status == 429) {
    const auto wait = reply.retry_after();
    fail(
        Kind::busy,
        "[hub] {} answers no more requests for now (status 429); try again {}{}",
        options.endpoint,
        wait ? fmt::format("in {:.0f} s", *wait) : "later",
        options.token.empty() ? "; with a token (HF_TOKEN) the limits are higher" : "");
  }
  fail(Kind::unavailable, "[hub] could not fetch {} from {}: {}", what, options.endpoint, reason(reply));
}

} // namespace parallm
