#include "api/connection.h"

#include "api/answers.h"
#include "api/routes.h"
#include "api/sse.h"
#include "base/log.h"
#include "base/random_hex.h"

#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include <mutex>

namespace parallm {

namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = net::ip::tcp;
using Clock = std::chrono::steady_clock;
using Parser = http::request_parser<http::string_body>;
using Head = http::response<http::empty_body>;

/** Wakes a connection from the engine's thread. Closed before its connection's
 * executor goes away. */
class Bell {
 public:
  explicit Bell(net::steady_timer& timer) : timer_(&timer) {}

  static void ring(const std::shared_ptr<Bell>& bell) {
    std::lock_guard lock(bell->mutex_);
    if (bell->timer_ && !bell->rung_) {
      bell->rung_ = true;
      net::post(bell->timer_->get_executor(), [bell] { bell->wake(); });
    }
  }
  /** Whether it rang since the last call. */
  bool take() {
    std::lock_guard lock(mutex_);
    return std::exchange(rung_, false);
  }
  void close() {
    std::lock_guard lock(mutex_);
    timer_ = nullptr;
  }

 private:
  void wake() { // on the connection's strand
    std::lock_guard lock(mutex_);
    if (timer_) {
      timer_->cancel();
    }
  }

  std::mutex mutex_;
  net::steady_timer* timer_;
  bool rung_ = false;
};

struct BellOwner {
  std::shared_ptr<Bell> bell;
  ~BellOwner() {
    bell->close();
  }
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, Shared& shared)
      : shared_(shared), count_(shared.connections), stream_(std::move(socket)), timer_(stream_.get_executor()) {}

  net::awaitable<void> serve() {
    auto self = shared_from_this();
    bool more = true;
    while (more && !shared_.stopping) {
      more = co_await one_request();
    }
    beast::error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
  }

 private:
  /** True where the connection may take a further request. */
  net::awaitable<bool> one_request() {
    auto& options = shared_.options;
    Parser parser;
    parser.header_limit(options.header_limit);
    parser.body_limit(options.body_limit);
    stream_.expires_after(options.idle_timeout);
    auto [error, bytes] = co_await http::async_read_header(stream_, buffer_, parser, as_value);
    begin(parser);
    if (!error) {
      stream_.expires_after(options.read_timeout);
      error = co_await read_rest(parser);
    }
    if (error) {
      co_await answer_unreadable(error);
      co_return false;
    }
    Counted active(shared_.active);
    read_request(parser.release());
    std::unique_ptr<Live> live;
    Answer answer;
    co_await dispatch(answer, live);
    bool good = false;
    if (live) {
      good = co_await make(std::move(live));
    } else {
      good = co_await send(std::move(answer));
    }
    co_return good&& keep_alive_;
  }

  void begin(const Parser& parser) {
    arrived_ = Clock::now();
    version_ = parser.get().version() == 10 ? 10 : 11;
    keep_alive_ = parser.get().keep_alive();
    request_ = {};
    request_.id = random_hex(24);
    origin_.clear();
    path_label_ = "other";
  }

  net::awaitable<beast::error_code> read_rest(Parser& parser) {
    if (beast::iequals(parser.get()[http::field::expect], "100-continue")) {
      static constexpr std::string_view go_on = "HTTP/1.1 100 Continue\r\n\r\n";
      auto [error, bytes] = co_await net::async_write(stream_, net::buffer(go_on), as_value);
      if (error) {
        co_return error;
      }
    }
    // What follows a request without a body is the next request.
    if (parser.is_done()) {
      co_return beast::error_code();
    }
    auto [error, bytes] = co_await http::async_read(stream_, buffer_, parser, as_value);
    co_return error;
  }

  void read_request(http::request<http::string_body> message) {
    request_.method = std::string(message.method_string());
    request_.path = decode_path(message.target());
    request_.query = decode_query(message.target());
    auto id = message["x-request-id"];
    if (is_id({id.data(), id.size()})) {
      request_.id = std::string(id);
    }
    origin_ = std::string(message[http::field::origin]);
    wanted_headers_ = std::string(message[http::field::access_control_request_headers]);
    authorization_ = std::string(message[http::field::authorization]);
    request_.body = std::move(message.body());
  }

  /** What was no whole request: an answer where one can be read, then the end.
   */
  net::awaitable<void> answer_unreadable(beast::error_code error) {
    if (error == http::error::body_limit) {
      co_await send(error_answer(Error(
          Kind::too_large, "", fmt::format("[server] the body must be at most {} bytes", shared_.options.body_limit))));
    } else if (error == http::error::header_limit) {
      Answer answer = error_answer(Error(
          Kind::invalid,
          "",
          fmt::format("[server] the header must be at most {} bytes", shared_.options.header_limit)));
      answer.status = 431;
      co_await send(std::move(answer));
    } else if (
        error.category() == make_error_code(http::error::bad_method).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message) {
      co_await send(error_answer(Error(Kind::invalid, "", fmt::format("[server] not HTTP: {}", error.message()))));
    } else {
      co_return;
    }
    co_await linger();
  }

  /** Reads on for a moment after an early answer: closing on unread bytes would
   * take the answer from the client. */
  net::awaitable<void> linger() {
    beast::error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    stream_.expires_after(std::chrono::seconds(2));
    std::array<char, 4096> scratch;
    while (true) {
      auto [error, bytes] = co_await stream_.async_read_some(net::buffer(scratch), as_value);
      if (error) {
        co_return;
      }
    }
  }

  bool authorized(const Route& route) const {
    const std::string& key = shared_.options.api_key;
    constexpr std::string_view scheme = "Bearer ";
    std::string_view given = authorization_;
    bool bearer = beast::iequals(
        beast::string_view(given.data(), std::min(given.size(), scheme.size())),
        beast::string_view(scheme.data(), scheme.size()));
    return key.empty() || route.open || (bearer && same_secret(given.substr(scheme.size()), key));
  }

  net::awaitable<std::optional<Error>> reply_on(Route::On on, Reply& reply, const std::function<Reply()>& make) {
    std::optional<Error> error;
    const auto handle = [&] { error = caught([&] { reply = make(); }); };
    if (on == Route::On::connection) {
      handle();
      co_return error;
    }
    co_await net::co_spawn(
        on == Route::On::work ? *shared_.work : *shared_.waiting,
        [&]() -> net::awaitable<void> {
          handle();
          co_return;
        },
        net::use_awaitable);
    co_return error;
  }

  /** Takes the Later's place. What its work may take is the request's own time, while its client is there. */
  net::awaitable<std::optional<Error>> reply_later(Reply& reply) {
    const auto later = std::get<std::unique_ptr<Later>>(std::move(reply));
    const auto over = std::make_shared<std::atomic<bool>>(false);
    gone_ = false;
    stream_.expires_never();
    watch();
    timer_.expires_at(arrived_ + shared_.options.request_timeout);
    timer_.async_wait(
        [self = shared_from_this(), over](beast::error_code error) { *over = *over || !error || self->gone_; });
    auto error = co_await reply_on(Route::On::waiting, reply, [&] { return later->work(*over); });
    timer_.cancel();
    co_await end_watch();
    co_return error;
  }

  net::awaitable<void> dispatch(Answer& answer, std::unique_ptr<Live>& live) {
    const Route* route = nullptr;
    std::string allow;
    auto error = caught([&] {
      route = find_route(request_, allow);
      if (route && !authorized(*route)) {
        fail(Kind::unauthorized, "[server] wrong or missing API key");
      }
    });
    if (!error && !route) {
      answer = request_.method == "OPTIONS" ? preflight(allow + ", OPTIONS", wanted_headers_)
                                            : wrong_method(request_, allow);
      co_return;
    }
    if (!error) {
      path_label_ = std::string(route->path);
      Reply reply;
      error = co_await reply_on(route->on, reply, [&] { return route->handle(request_, shared_.service); });
      while (!error && std::holds_alternative<std::unique_ptr<Later>>(reply)) {
        error = co_await reply_later(reply);
      }
      if (!error) {
        if (auto made = std::get_if<std::unique_ptr<Live>>(&reply)) {
          live = std::move(*made);
        } else {
          answer = std::get<Answer>(std::move(reply));
        }
      }
    }
    if (error) {
      answer = error_answer(*error);
    }
  }

  template <typename Message>
  void set_headers(Message& message, const Answer& answer) {
    message.set(http::field::server, "mlx_parallm");
    message.set("x-request-id", request_.id);
    if (!answer.type.empty() && answer.status != 204) {
      message.set(http::field::content_type, answer.type);
    }
    for (const auto& [name, value] : answer.headers) {
      message.set(name, value);
    }
    for (const auto& [name, value] : cors_headers(shared_.options.allowed_origins, origin_)) {
      message.set(name, value);
    }
    keep_alive_ = keep_alive_ && !shared_.stopping;
    message.keep_alive(keep_alive_);
  }

  void count(int status) {
    shared_.service.metrics().http(path_label_, status);
    spdlog::debug(
        "{} {} {} {:.1f} ms {}",
        request_.method,
        request_.path,
        status,
        std::chrono::duration<double, std::milli>(Clock::now() - arrived_).count(),
        request_.id);
  }

  net::awaitable<bool> send(Answer answer) {
    count(answer.status);
    stream_.expires_after(shared_.options.write_timeout);
    if (request_.method == "HEAD" || answer.status == 204) {
      Head head(static_cast<http::status>(answer.status), version_);
      set_headers(head, answer);
      if (answer.status != 204) {
        head.content_length(answer.body.size());
      }
      http::response_serializer<http::empty_body> serializer(head);
      auto [error, bytes] = co_await http::async_write_header(stream_, serializer, as_value);
      co_return !error;
    }
    http::response<http::string_body> message(static_cast<http::status>(answer.status), version_);
    set_headers(message, answer);
    message.body() = std::move(answer.body);
    message.prepare_payload();
    auto [error, bytes] = co_await http::async_write(stream_, message, as_value);
    co_return !error;
  }

  /** One read stays open while an answer is made: it ends when the client goes
   * away, and what it reads belongs to the next request. */
  void watch() {
    constexpr size_t ahead = 64 << 10; // a client that sends more has to wait
    if (buffer_.size() >= ahead) {
      return;
    }
    watching_ = true;
    stream_.async_read_some(buffer_.prepare(4096), [self = shared_from_this()](beast::error_code error, size_t bytes) {
      self->watching_ = false;
      if (error) {
        self->gone_ = true;
        self->timer_.cancel();
      } else {
        self->buffer_.commit(bytes);
        if (!self->unwatch_) {
          self->watch();
        }
      }
    });
  }

  net::awaitable<void> end_watch() {
    unwatch_ = true;
    if (watching_) {
      bool left = gone_;
      stream_.cancel();
      while (watching_) {
        co_await net::post(stream_.get_executor(), net::use_awaitable);
      }
      gone_ = left;
    }
    unwatch_ = false;
  }

  /** Drives a Live answer to its end. False: the connection is of no more use.
   */
  net::awaitable<bool> make(std::unique_ptr<Live> live) {
    BellOwner owner{std::make_shared<Bell>(timer_)};
    live->on_ready([bell = owner.bell] { Bell::ring(bell); });
    gone_ = false;
    stream_.expires_never();
    watch();
    Clock::time_point deadline = arrived_ + shared_.options.request_timeout;
    bool begun = false; // the head of a stream is written
    while (!gone_) {
      Live::Progress progress;
      std::optional<Error> error;
      if (owner.bell->take()) {
        error = caught([&] { progress = live->advance(); });
      } else if (Clock::now() >= deadline) {
        error = Error(
            Kind::timeout,
            "",
            fmt::format(
                "[server] the request took longer than {} s", shared_.options.request_timeout.count() / 1000.0));
      } else {
        timer_.expires_at(deadline);
        co_await timer_.async_wait(as_value);
        continue;
      }
      bool streaming = live->streaming;
      Headers headers = live->headers;
      if (error || progress.done) {
        live.reset(); // its rows leave before the last bytes do
      }
      if (error && !begun) {
        co_await end_watch();
        co_return co_await send(error_answer(*error));
      }
      if (!error && progress.done && !streaming) {
        co_await end_watch();
        Answer answer;
        answer.body = std::move(progress.bytes);
        answer.headers = std::move(headers);
        co_return co_await send(std::move(answer));
      }
      if (error) {
        progress.bytes = "data: " + error_body(*error) + "\n\n" + sse_done;
        progress.done = true;
      }
      if (!progress.bytes.empty()) {
        if (!begun) {
          begun = co_await send_stream_head(headers);
          if (!begun) {
            break;
          }
        }
        if (!co_await send_piece(progress.bytes, progress.done)) {
          break;
        }
      }
      if (progress.done) {
        co_await end_watch();
        co_return !gone_;
      }
    }
    live.reset();
    co_await end_watch();
    co_return false;
  }

  net::awaitable<bool> send_stream_head(const Headers& headers) {
    count(200);
    Answer answer{.type = "text/event-stream; charset=utf-8", .headers = headers};
    answer.headers.emplace_back("Cache-Control", "no-cache");
    answer.headers.emplace_back("X-Accel-Buffering", "no");
    keep_alive_ = keep_alive_ && version_ == 11;
    Head head(http::status::ok, version_);
    set_headers(head, answer);
    head.chunked(version_ == 11);
    http::response_serializer<http::empty_body> serializer(head);
    stream_.expires_after(shared_.options.write_timeout);
    auto [error, bytes] = co_await http::async_write_header(stream_, serializer, as_value);
    co_return !error;
  }

  /** Waits until the client took it: a slow reader slows only its own stream, a
   * dead one is dropped. */
  net::awaitable<bool> send_piece(const std::string& bytes, bool last) {
    stream_.expires_after(shared_.options.write_timeout);
    beast::error_code error;
    if (version_ == 10) {
      std::tie(error, std::ignore) = co_await net::async_write(stream_, net::buffer(bytes), as_value);
      co_return !error;
    }
    std::tie(error, std::ignore) = co_await net::async_write(stream_, http::make_chunk(net::buffer(bytes)), as_value);
    if (!error && last) {
      std::tie(error, std::ignore) = co_await net::async_write(stream_, http::make_chunk_last(), as_value);
    }
    co_return !error;
  }

  Shared& shared_;
  Counted count_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  net::steady_timer timer_;
  bool watching_ = false;
  bool unwatch_ = false;
  bool gone_ = false;

  // The request being answered.
  HttpRequest request_;
  Clock::time_point arrived_;
  unsigned version_ = 11;
  bool keep_alive_ = true;
  std::string origin_;
  std::string wanted_headers_;
  std::string authorization_;
  std::string path_label_;
};

} // namespace

net::awaitable<void> serve_connection(tcp::socket socket, Shared& shared) {
  auto connection = std::make_shared<Connection>(std::move(socket), shared);
  co_await connection->serve();
}

} // namespace parallm
