#include "hub/http.h"

#include "base/error.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <mutex>

namespace parallm {

namespace {

constexpr int most_redirects = 10;
constexpr size_t most_body = size_t{64} << 20; // a listing of a repository is some megabytes at most
constexpr long connect_seconds = 10, silent_seconds = 30;

/** Scheme, host and port; empty where it is no http(s) URL. */
std::string origin(const std::string& url) {
  std::unique_ptr<CURLU, void (*)(CURLU*)> parsed(curl_url(), curl_url_cleanup);
  if (curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK) {
    return "";
  }
  std::string result;
  for (const CURLUPart part : {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT}) {
    char* text = nullptr;
    if (curl_url_get(parsed.get(), part, &text, CURLU_DEFAULT_PORT) == CURLUE_OK) {
      result += text;
      curl_free(text);
    }
    result += ' ';
  }
  std::transform(result.begin(), result.end(), result.begin(), [](unsigned char c) { return std::tolower(c); });
  return result.starts_with("http ") || result.starts_with("https ") ? result : "";
}

/** `location` as seen from `url`. */
std::string resolved(const std::string& url, const std::string& location) {
  std::unique_ptr<CURLU, void (*)(CURLU*)> parsed(curl_url(), curl_url_cleanup);
  char* text = nullptr;
  if (curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK ||
      curl_url_set(parsed.get(), CURLUPART_URL, location.c_str(), CURLU_URLENCODE) != CURLUE_OK ||
      curl_url_get(parsed.get(), CURLUPART_URL, &text, 0) != CURLUE_OK) {
    return "";
  }
  std::string result = text;
  curl_free(text);
  return result;
}

/** One transfer's state, which libcurl's callbacks fill. */
struct Transfer {
  Reply reply;
  const Sink* sink = nullptr;
  const std::atomic<bool>* stop = nullptr;
};

size_t on_header(char* data, size_t one, size_t count, void* user) {
  auto& reply = static_cast<Transfer*>(user)->reply;
  std::string_view line(data, one * count);
  if (line.starts_with("HTTP/")) { // the head of another answer: a proxy's, or after 100 Continue
    reply.headers.clear();
    const size_t space = line.find(' ');
    reply.status = space == line.npos ? 0 : std::atol(std::string(line.substr(space + 1, 3)).c_str());
    return line.size();
  }
  const size_t colon = line.find(':');
  if (colon != line.npos) {
    std::string name(line.substr(0, colon));
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    const size_t from = line.find_first_not_of(" \t", colon + 1);
    const size_t to = line.find_last_not_of(" \t\r\n");
    reply.headers[name] = from == line.npos || from > to ? "" : line.substr(from, to - from + 1);
  }
  return line.size();
}

size_t on_body(char* data, size_t one, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string_view piece(data, one * count);
  const bool good = transfer.reply.status >= 200 && transfer.reply.status < 300;
  if (good && *transfer.sink) {
    if (!(*transfer.sink)(transfer.reply, piece)) {
      transfer.reply.stopped = true;
      return 0;
    }
    return piece.size();
  }
  if (transfer.reply.body.size() + piece.size() > most_body) {
    return 0;
  }
  transfer.reply.body += piece;
  return piece.size();
}

int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  auto& transfer = *static_cast<Transfer*>(user);
  transfer.reply.stopped = transfer.reply.stopped || *transfer.stop;
  return transfer.reply.stopped ? 1 : 0;
}

/** A firm's own certificates, by the variables that Python's clients and curl read. */
const char* certificates() {
  for (const char* name : {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}) {
    const char* path = std::getenv(name);
    if (path != nullptr && *path != 0) {
      return path;
    }
  }
  return nullptr;
}

} // namespace

struct Http::Connection {
  CURL* curl;
  const std::atomic<bool>& stop;
  std::array<char, CURL_ERROR_SIZE> words{};

  explicit Connection(const std::atomic<bool>& stop) : stop(stop) {
    static std::once_flag once;
    std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
    curl = curl_easy_init();
    check(curl != nullptr, "libcurl starts");
  }
  ~Connection() {
    curl_easy_cleanup(curl);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /** One answer, without following it. */
  Reply once(const std::string& url, const Question& question, const std::string& token, const Sink& sink);
};

Reply Http::Connection::once(
    const std::string& url,
    const Question& question,
    const std::string& token,
    const Sink& sink) {
  Transfer transfer{.sink = &sink, .stop = &stop};
  curl_easy_reset(curl); // keeps the connection alive
  words[0] = 0;
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, words.data());
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L); // a proxy's own
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "mlx_parallm");
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, connect_seconds);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, silent_seconds);
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 512L << 10);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_NOBODY, question.head ? 1L : 0L);
  if (const char* path = certificates()) {
    curl_easy_setopt(curl, CURLOPT_CAINFO, path);
  }
  std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(nullptr, curl_slist_free_all);
  const auto add = [&](const std::string& line) { headers.reset(curl_slist_append(headers.release(), line.c_str())); };
  add("Accept-Encoding: identity"); // sizes and ranges are of the file itself
  if (question.from > 0) {
    add(fmt::format("Range: bytes={}-", question.from));
  }
  if (!token.empty()) {
    add("Authorization: Bearer " + token);
  }
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());

  const CURLcode code = curl_easy_perform(curl);
  if (code != CURLE_OK && !transfer.reply.stopped) {
    transfer.reply.failure = words[0] != 0 ? words.data() : curl_easy_strerror(code);
    transfer.reply.hopeless = code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
        code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_WRITE_ERROR;
  }
  return std::move(transfer.reply);
}

Http::Http(std::string endpoint, std::string token, const std::atomic<bool>& stop)
    : connection_(std::make_unique<Connection>(stop)), endpoint_(std::move(endpoint)), token_(std::move(token)) {}

Http::~Http() = default;

Reply Http::ask(const Question& question, const Sink& sink) {
  const std::string home = origin(endpoint_);
  std::string url = question.url;
  for (int redirects = 0;; ++redirects) {
    const bool at_home = !home.empty() && origin(url) == home;
    Reply reply = connection_->once(url, question, at_home ? token_ : "", sink);
    const std::string& location = reply.header("location");
    if (!reply.failure.empty() || reply.stopped || reply.status < 300 || reply.status > 399 || location.empty()) {
      return reply;
    }
    const std::string next = resolved(url, location);
    if (question.head && origin(next) != home) {
      return reply; // what the hub says of the file is in this answer, not in the other host's
    }
    const bool weaker = origin(url).starts_with("https ") && !origin(next).starts_with("https ");
    if (origin(next).empty() || weaker || redirects == most_redirects) {
      reply.failure = fmt::format("{} leads to {}, which is not followed", url, location);
      reply.hopeless = true;
      return reply;
    }
    url = next;
  }
}

const std::string& Reply::header(const std::string& name) const {
  static const std::string none;
  const auto found = headers.find(name);
  return found == headers.end() ? none : found->second;
}

std::optional<double> Reply::retry_after() const {
  const std::string& after = header("retry-after");
  if (!after.empty()) {
    if (after.find_first_not_of("0123456789") == after.npos) {
      return std::atof(after.c_str());
    }
    const time_t then = curl_getdate(after.c_str(), nullptr);
    return then < 0 ? std::nullopt : std::optional(std::max(0.0, std::difftime(then, std::time(nullptr))));
  }
  // "api";r=0;t=55 (draft-ietf-httpapi-ratelimit-headers): nothing remains for 55 seconds
  const std::string& limit = header("ratelimit");
  const size_t t = limit.find("t=");
  if (status == 429 && t != limit.npos) {
    return std::atof(limit.c_str() + t + 2);
  }
  return {};
}

std::string quoted(std::string_view text, std::string_view keep) {
  std::string out;
  for (const unsigned char c : text) {
    if ((c < 128 && std::isalnum(c) != 0) ||
        std::string_view("-_.~").find(static_cast<char>(c)) != std::string_view::npos ||
        keep.find(static_cast<char>(c)) != keep.npos) {
      out += static_cast<char>(c);
    } else {
      out += fmt::format("%{:02X}", c);
    }
  }
  return out;
}

} // namespace parallm
