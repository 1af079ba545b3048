#include "memory/address.h"

#include "base/error.h"

#include <charconv>

namespace parallm {

namespace {

template <typename Number>
bool read_number(std::string_view text, Number& number, int base = 10) {
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, number, base);
  return !text.empty() && error == std::errc() && at == end;
}

std::string decoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    if (text[i] == '%' && i + 2 < text.size() && read_number(text.substr(i + 1, 2), byte, 16)) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

/** Cuts `text` at the first `mark`; what follows it. */
std::string_view cut(std::string_view& text, char mark) {
  const size_t at = text.find(mark);
  const std::string_view rest = at == text.npos ? std::string_view() : text.substr(at + 1);
  text = text.substr(0, at);
  return rest;
}

void parse_host(std::string_view text, Address& address) {
  const size_t at = text.rfind('@');
  if (at != text.npos) {
    std::string_view user = text.substr(0, at);
    address.password = decoded(cut(user, ':'));
    address.user = decoded(user);
    text.remove_prefix(at + 1);
  }
  const size_t colon = text.rfind(':');
  if (colon != text.npos && text.find(']', colon) == text.npos) { // [::1] is an address of IPv6
    if (!read_number(text.substr(colon + 1), address.port) || address.port == 0) {
      fail(Kind::invalid, "[memory] a store's port is 1 to 65535; got {}", text.substr(colon + 1));
    }
    text = text.substr(0, colon);
  }
  if (text.starts_with('[') && text.ends_with(']')) {
    text = text.substr(1, text.size() - 2);
  }
  address.host = decoded(text);
}

} // namespace

std::string Address::take(const std::string& name, const std::string& otherwise) {
  const auto found = parameters.extract(name);
  return found ? found.mapped() : otherwise;
}

uint64_t Address::take_number(const std::string& name, uint64_t otherwise, uint64_t least, uint64_t most) {
  const std::string text = take(name);
  uint64_t number = otherwise;
  if (!text.empty() && (!read_number(std::string_view(text), number) || number < least || number > most)) {
    fail(Kind::invalid, "[memory] {} of a store's address is a number from {} to {}; got {}", name, least, most, text);
  }
  return number;
}

size_t Address::take_exact() {
  return take_number("exact", 20'000, 0, 1'000'000'000);
}

int Address::take_timeout(int otherwise) {
  return static_cast<int>(take_number("timeout_ms", otherwise, 1, 600'000));
}

std::string Address::shown() const {
  if (host.empty()) {
    return scheme + ":" + path;
  }
  return scheme + "://" + host + (port > 0 ? ":" + std::to_string(port) : "") + (path.empty() ? "" : "/" + path);
}

Address parse_address(const std::string& url) {
  Address address;
  std::string_view rest = url;
  const size_t colon = rest.find(':');
  const bool scheme = colon != rest.npos && colon > 1 &&
      rest.substr(0, colon).find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789+") == rest.npos;
  if (!scheme) {
    if (url.empty()) {
      fail(Kind::invalid, "[memory] a store's address is empty");
    }
    address.scheme = "files";
    address.path = url;
    return address;
  }
  address.scheme = rest.substr(0, colon);
  rest.remove_prefix(colon + 1);
  std::string_view parameters = cut(rest, '?');
  while (!parameters.empty()) {
    std::string_view one = parameters;
    parameters = cut(one, '&');
    const std::string value = decoded(cut(one, '='));
    address.parameters[decoded(one)] = value;
  }
  if (rest.starts_with("//")) {
    rest.remove_prefix(2);
    const size_t slash = rest.find('/');
    parse_host(rest.substr(0, slash), address);
    rest = slash == rest.npos ? std::string_view() : rest.substr(address.host.empty() ? slash : slash + 1);
  }
  address.path = decoded(rest);
  return address;
}

} // namespace parallm
