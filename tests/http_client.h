// A small blocking HTTP client on a socket, for tests: it sends bytes as given
// and shows the answer's own bytes.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

namespace parallm::test {

struct Response {
  int status = 0;
  std::map<std::string, std::string> headers; // names in lower case
  std::string body; // chunks joined
};

class Client {
 public:
  /** `window`: bytes the socket takes unread, 0 for the system's. */
  explicit Client(int port, int window = 0) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    timeval limit{20, 0};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (window) {
      setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &window, sizeof window);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address)) {
      throw std::runtime_error("connect");
    }
  }
  ~Client() {
    ::close(socket_);
  }
  Client(const Client&) = delete;

  void send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      auto n = ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) {
        return; // the server answered early and closed
      }
      sent += n;
    }
  }

  void ask(
      const std::string& method,
      const std::string& path,
      const std::string& body = "",
      const std::string& headers = "") {
    send(
        method + " " + path + " HTTP/1.1\r\nHost: test\r\n" + headers +
        "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }

  Response read(bool head = false) {
    Response response;
    std::string line = take_line();
    response.status = std::stoi(line.substr(9, 3));
    while (!(line = take_line()).empty()) {
      size_t colon = line.find(':');
      std::string name = line.substr(0, colon);
      std::transform(name.begin(), name.end(), name.begin(), ::tolower);
      response.headers[name] = line.substr(colon + 2);
    }
    if (head || response.status == 204) {
      return response;
    }
    if (response.headers.contains("transfer-encoding")) {
      while (size_t size = std::stoul(take_line(), nullptr, 16)) {
        response.body += take(size);
        take_line();
      }
      take_line();
    } else {
      response.body = take(std::stoul(response.headers.at("content-length")));
    }
    return response;
  }

  /** Bytes until `end` was seen. */
  std::string read_until(const std::string& end) {
    while (buffer_.find(end) == std::string::npos) {
      more();
    }
    return take(buffer_.find(end) + end.size());
  }

  bool closed() {
    char byte;
    return ::recv(socket_, &byte, 1, 0) == 0;
  }

 private:
  void more() {
    char bytes[4096];
    auto n = ::recv(socket_, bytes, sizeof bytes, 0);
    if (n <= 0) {
      throw std::runtime_error("the connection ended");
    }
    buffer_.append(bytes, n);
  }
  std::string take(size_t size) {
    while (buffer_.size() < size) {
      more();
    }
    std::string out = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return out;
  }
  std::string take_line() {
    std::string line = read_until("\r\n");
    return line.substr(0, line.size() - 2);
  }

  int socket_;
  std::string buffer_;
};

} // namespace parallm::test
