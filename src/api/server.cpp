#include "api/server.h"

#include "api/connection.h"
#include "base/log.h"

#include <sys/resource.h>

#include <thread>

namespace parallm {

namespace {

using tcp = net::ip::tcp;
using Clock = std::chrono::steady_clock;

void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 1 << 20);
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

} // namespace

std::optional<Error> caught(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    spdlog::error("request failed: {}", error.what());
    return Error(Kind::internal, "", "[server] internal error");
  }
  return std::nullopt;
}

struct Server::Parts {
  Shared shared;
  net::io_context io;
  // What is not one connection's runs on one strand: accepting, signals, the
  // end.
  net::strand<net::io_context::executor_type> control{net::make_strand(io)};
  tcp::acceptor acceptor{control};
  net::signal_set signals{control};
  int port = 0;
  net::thread_pool work; // joined before io goes
  net::thread_pool waiting; // likewise

  Parts(ServerOptions options, Service& service)
      : shared{std::move(options), service},
        io(shared.options.io_threads),
        work(shared.options.work_threads),
        waiting(shared.options.waiting_threads) {
    shared.work = &work;
    shared.waiting = &waiting;
    raise_file_limit();
    listen();
  }

  void listen() {
    const auto& options = shared.options;
    boost::system::error_code error;
    tcp::resolver resolver(io);
    auto found = resolver.resolve(options.host, std::to_string(options.port), error);
    if (!error) {
      tcp::endpoint endpoint = found.begin()->endpoint();
      acceptor.open(endpoint.protocol(), error);
      acceptor.set_option(tcp::acceptor::reuse_address(true), error);
      acceptor.bind(endpoint, error);
      if (!error) {
        acceptor.listen(4096, error);
        port = acceptor.local_endpoint().port();
      }
    }
    if (error) {
      fail(Kind::invalid, "[server] can't listen on {}:{}: {}", options.host, options.port, error.message());
    }
  }

  net::awaitable<void> accept() {
    while (!shared.stopping) {
      auto [error, socket] = co_await acceptor.async_accept(net::make_strand(io), as_value);
      if (error == net::error::operation_aborted || error == net::error::bad_descriptor) {
        co_return;
      }
      if (error) { // out of descriptors: those that end make room
        spdlog::warn("accept: {}", error.message());
        net::steady_timer pause(control, std::chrono::milliseconds(100));
        co_await pause.async_wait(as_value);
        continue;
      }
      boost::system::error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      tcp::socket plain(std::move(socket)); // it keeps its strand
      auto strand = plain.get_executor();
      net::co_spawn(strand, serve_connection(std::move(plain), shared), net::detached);
    }
  }

  void on_signal() {
    signals.async_wait([this](boost::system::error_code error, int number) {
      if (error) {
        return;
      }
      spdlog::info("signal {}: shutting down", number);
      begin_stop();
      on_signal();
    });
  }

  /** Again: at once. */
  void begin_stop() {
    if (shared.stopping.exchange(true)) {
      io.stop();
      return;
    }
    boost::system::error_code ignored;
    acceptor.close(ignored);
    shared.service.draining();
    net::co_spawn(control, drain(), net::detached);
  }

  net::awaitable<void> drain() {
    auto limit = Clock::now() + shared.options.drain_limit;
    net::steady_timer timer(control);
    while (shared.active > 0 && Clock::now() < limit) {
      timer.expires_after(std::chrono::milliseconds(20));
      co_await timer.async_wait(as_value);
    }
    if (int left = shared.active) {
      spdlog::warn("{} requests were cut off at the drain limit", left);
    }
    io.stop(); // idle connections end with it
  }
};

Server::Server(ServerOptions options, Service& service)
    : parts_(std::make_unique<Parts>(std::move(options), service)) {}

Server::~Server() = default;

int Server::port() const {
  return parts_->port;
}

int Server::connections() const {
  return parts_->shared.connections;
}

void Server::run() {
  auto& io = parts_->io;
  parts_->signals.add(SIGTERM);
  parts_->signals.add(SIGINT);
  parts_->on_signal(); // no thread runs the strand yet
  net::co_spawn(parts_->control, parts_->accept(), net::detached);
  std::vector<std::thread> threads;
  for (int i = 1; i < parts_->shared.options.io_threads; ++i) {
    threads.emplace_back([&] { io.run(); });
  }
  io.run();
  for (auto& thread : threads) {
    thread.join();
  }
  parts_->work.join();
  parts_->shared.service.cut_off();
  parts_->waiting.stop(); // what has not begun never will
  parts_->waiting.join();
}

void Server::stop() {
  net::post(parts_->control, [parts = parts_.get()] { parts->begin_stop(); });
}

} // namespace parallm
