#include "base/error.h"
#include "base/file.h"
#include "hub/hub.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>

namespace parallm {

namespace {

namespace fs = std::filesystem;

/** An empty variable is one that is not set. */
std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == 0 ? std::nullopt : std::optional<std::string>(value);
}

std::string home() {
  return variable("HOME").value_or("");
}

/** "~/x", "$NAME/x" and "${NAME}/x", as huggingface_hub reads its variables. */
std::string expanded(const std::string& text) {
  std::string out = text == "~" || text.starts_with("~/") ? home() : "";
  for (size_t at = out.empty() ? 0 : 1; at < text.size();) {
    const bool braces = text.compare(at, 2, "${") == 0;
    const size_t from = at + (braces ? 2 : 1);
    size_t to = from;
    while (to < text.size() && (std::isalnum(static_cast<unsigned char>(text[to])) != 0 || text[to] == '_')) {
      ++to;
    }
    const auto value = text[at] == '$' ? variable(text.substr(from, to - from).c_str()) : std::nullopt;
    const bool closed = !braces || (to < text.size() && text[to] == '}');
    if (value && closed) {
      out += *value;
      at = to + (braces ? 1 : 0);
    } else {
      out += text[at++];
    }
  }
  return out;
}

bool is_true(const char* name) {
  std::string value = variable(name).value_or("");
  std::transform(value.begin(), value.end(), value.begin(), [](unsigned char c) { return std::toupper(c); });
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

std::string stripped(const std::string& text) {
  constexpr const char* space = " \t\r\n\v\f";
  const size_t from = text.find_first_not_of(space);
  return from == text.npos ? "" : text.substr(from, text.find_last_not_of(space) - from + 1);
}

void read_token(const std::string& hf_home, HubOptions& options) {
  if (is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
    return;
  }
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    options.token = stripped(variable(name).value_or(""));
    options.token_source = name;
    if (!options.token.empty()) {
      break;
    }
  }
  if (options.token.empty()) {
    const auto own = variable("HF_TOKEN_PATH");
    options.token_source = own ? expanded(*own) : hf_home + "/token";
    if (fs::is_regular_file(options.token_source)) {
      options.token = stripped(read_file(options.token_source));
    }
  }
  const auto printable = [](unsigned char c) { return c > 32 && c < 127; };
  if (!std::all_of(options.token.begin(), options.token.end(), printable)) {
    fail(Kind::invalid, "[hub] the token in {} has spaces or control characters inside", options.token_source);
  }
}

} // namespace

HubOptions hub_environment() {
  HubOptions options;
  options.endpoint = variable("HF_ENDPOINT").value_or(options.endpoint);
  while (options.endpoint.ends_with('/')) {
    options.endpoint.pop_back();
  }
  if (!options.endpoint.starts_with("https://") && !options.endpoint.starts_with("http://")) {
    fail(Kind::invalid, "[hub] HF_ENDPOINT must begin with https:// or http://; got {}", options.endpoint);
  }
  const std::string cache_home = variable("XDG_CACHE_HOME").value_or(home() + "/.cache");
  const std::string hf_home = expanded(variable("HF_HOME").value_or(cache_home + "/huggingface"));
  const std::string older = variable("HUGGINGFACE_HUB_CACHE").value_or(hf_home + "/hub");
  options.cache = expanded(variable("HF_HUB_CACHE").value_or(older));
  options.offline =
      is_true("HF_HUB_OFFLINE") || (variable("HF_HUB_OFFLINE").value_or("").empty() && is_true("TRANSFORMERS_OFFLINE"));
  read_token(hf_home, options);
  return options;
}

} // namespace parallm
