#include "api_server.h"

#include "base/json.h"

#include <csignal>

using namespace parallm;
using namespace parallm::test;
using namespace std::chrono_literals;

namespace {

const std::string body = R"({"model":"alias","prompt":"ab"})";
const std::string long_body = R"({"model":"alias","prompt":"ab","max_tokens":200})";
const std::string stream_body = R"({"model":"alias","prompt":"ab","max_tokens":200,"stream":true})";

// Says for about a second.
Setup slow() {
  return {.says = std::string(200, 'x'), .pause = 10ms};
}

} // namespace

TEST_CASE("keep-alive, HEAD, 404, 405, OPTIONS") {
  TestServer server;
  Client client(server.server.port());
  client.ask("GET", "/health");
  CHECK(client.read().body == R"({"status":"ok"})");
  client.ask("HEAD", "/health");
  auto head = client.read(true);
  CHECK(head.headers["content-length"] == "15");
  client.ask("GET", "/nowhere");
  CHECK(client.read().status == 404);
  client.ask("DELETE", "/v1/completions");
  auto wrong = client.read();
  CHECK(wrong.status == 405);
  CHECK(wrong.headers["allow"] == "POST");
  client.ask("OPTIONS", "/v1/completions", "", "Origin: http://a\r\n");
  auto options = client.read();
  CHECK(options.status == 204);
  CHECK(options.headers["access-control-allow-origin"] == "*");
  client.ask("GET", "/health?x=1", "", "X-Request-Id: mine\r\n");
  CHECK(client.read().headers["x-request-id"] == "mine");
}

TEST_CASE("requests in one packet are answered in order; a stream keeps the connection") {
  TestServer server;
  Client client(server.server.port());
  std::string post = "POST /v1/completions HTTP/1.1\r\nContent-Length: " + std::to_string(stream_body.size()) +
      "\r\n\r\n" + stream_body;
  client.send(post + "GET /health HTTP/1.1\r\n\r\n");
  CHECK(client.read().body.ends_with("data: [DONE]\n\n"));
  CHECK(client.read().body == R"({"status":"ok"})");
}

TEST_CASE("a chunked request body") {
  TestServer server;
  Client client(server.server.port());
  client.send(
      "POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5\r\n{\"pro\r\nb\r\nmpt\":\"abc\"}\r\n0\r\n\r\n");
  CHECK(client.read().status == 200);
}

TEST_CASE("limits of body and header, and bytes that are not HTTP") {
  Setup setup;
  setup.server.body_limit = 1000;
  TestServer server(setup);
  CHECK(server.post("/v1/completions", std::string(2000, ' ')).status == 413);
  CHECK(server.ask("GET", "/health", "", "X: " + std::string(40000, 'x') + "\r\n").status == 431);
  Client client(server.server.port());
  client.send("\x16\x03\x01 nonsense\r\n\r\n");
  CHECK(client.read().status == 400);
}

TEST_CASE("an API key, /health open") {
  Setup setup;
  setup.server.api_key = "secret";
  TestServer server(setup);
  CHECK(server.ask("GET", "/health").status == 200);
  CHECK(server.ask("GET", "/v1/models").status == 401);
  CHECK(server.ask("GET", "/v1/models", "", "Authorization: Bearer secreT\r\n").status == 401);
  CHECK(server.ask("GET", "/v1/models", "", "Authorization: Bearer secret\r\n").status == 200);
}

TEST_CASE("while the model loads") {
  Setup setup;
  setup.load = false;
  TestServer server(setup);
  CHECK(server.ask("GET", "/health").status == 503);
  auto answer = server.post("/v1/completions", body);
  CHECK(answer.status == 503);
  CHECK(answer.headers["retry-after"] == "1");
  server.service.ready(served_model(setup));
  CHECK(server.ask("GET", "/health").status == 200);
  CHECK(server.post("/v1/completions", body).status == 200);
}

TEST_CASE("a client that goes away frees its row") {
  for (const std::string& request : {long_body, stream_body}) {
    CAPTURE(request);
    TestServer server({.says = std::string(200, 'x'), .pause = 50ms});
    auto running = [&] { return server.service.engine()->stats().running; };
    {
      Client client(server.server.port());
      client.ask("POST", "/v1/completions", request);
      REQUIRE(soon([&] { return running() == 1; }));
    }
    auto start = std::chrono::steady_clock::now();
    CHECK(soon([&] { return running() == 0; }));
    CHECK(std::chrono::steady_clock::now() - start < 5s); // the text takes 10
    CHECK(server.service.engine()->stats().cancelled == 1);
  }
}

TEST_CASE("a time-out frees the row: 504, or an error in the stream") {
  Setup setup{.says = std::string(200, 'x'), .pause = 50ms};
  setup.server.request_timeout = 300ms;
  TestServer server(setup);
  auto answer = server.post("/v1/completions", long_body);
  CHECK(answer.status == 504);
  auto stream = server.post("/v1/completions", stream_body);
  CHECK(stream.status == 200);
  CHECK(stream.body.find("data: {\"error\":{") != std::string::npos);
  CHECK(stream.body.ends_with("data: [DONE]\n\n"));
  CHECK(soon([&] { return server.service.engine()->stats().running == 0; }));
}

TEST_CASE("a full inbox is a 429 with Retry-After") {
  Setup setup = slow();
  setup.engine.max_rows = 1;
  setup.engine.max_waiting = 1;
  TestServer server(setup);
  auto answer = server.post("/v1/completions", R"({"model":"alias","prompt":["a","b","c","d"],"max_tokens":200})");
  CHECK(answer.status == 429);
  CHECK(answer.headers["retry-after"] == "1");
  CHECK(soon([&] { return server.service.engine()->stats().running == 0; }));
}

TEST_CASE("a client that does not read is dropped") {
  Setup setup;
  setup.server.write_timeout = 300ms;
  setup.engine.max_context = 16384;
  setup.engine.blocks = 16384;
  TestServer server(setup);
  Client client(server.server.port(), 4096);
  // Some 5 MB: more than the system's buffers take.
  client.ask(
      "POST",
      "/v1/completions",
      R"({"model":"alias","max_tokens":1,"n":16,"stream":true,"echo":true,"logprobs":5,"prompt":")" +
          std::string(12000, 'a') + "\"}");
  CHECK(soon([&] { return server.server.connections() == 1; }));
  CHECK(soon([&] { return server.server.connections() == 0; }));
  CHECK(server.service.engine()->stats().failed == 0);
}

TEST_CASE("stop lets running requests end, then returns") {
  Setup setup{.says = std::string(20, 'x'), .pause = 20ms};
  auto server = std::make_unique<TestServer>(setup);
  Client client(server->server.port());
  Client idle(server->server.port());
  client.ask("POST", "/v1/completions", stream_body);
  client.read_until("data: ");
  server->server.stop();
  CHECK(client.read_until("[DONE]").size() > 100);
  server.reset();
  CHECK(idle.closed());
}

TEST_CASE("SIGTERM lets running requests end, then run() returns") {
  Setup setup{.says = std::string(20, 'x'), .pause = 20ms};
  Service service(setup.service);
  service.ready(served_model(setup));
  Server server(setup.server, service);
  std::thread running([&] { server.run(); });
  {
    Client client(server.port());
    client.ask("POST", "/v1/completions", stream_body);
    client.read_until("data: ");
    ::kill(::getpid(), SIGTERM);
    CHECK(client.read_until("[DONE]").size() > 100);
  }
  running.join();
  CHECK(service.state() == State::draining);
}

TEST_CASE("the drain has a limit") {
  Setup setup{.says = std::string(200, 'x'), .pause = 50ms};
  setup.server.drain_limit = 100ms;
  auto start = std::chrono::steady_clock::now();
  {
    TestServer server(setup);
    Client client(server.server.port());
    client.ask("POST", "/v1/completions", stream_body);
    client.read_until("data: ");
  }
  CHECK(std::chrono::steady_clock::now() - start < 5s);
}

TEST_CASE("metrics name what happened") {
  TestServer server;
  server.post("/v1/completions", body);
  auto text = server.ask("GET", "/metrics").body;
  CHECK(text.find("vllm:generation_tokens_total{model_name=\"test/model\"} 9") != std::string::npos);
  CHECK(text.find("vllm:time_to_first_token_seconds_count 1") != std::string::npos);
  auto debug = json::parse(server.ask("GET", "/debug/metrics").body);
  CHECK(debug.at("decode_tokens_total") == 9);
  // One row of eight, in each step.
  CHECK(debug.at("batch_fill_hist").at(1) == debug.at("batches_processed"));
}

TEST_CASE("many clients at once") {
  TestServer server;
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 4; ++k) {
        auto answer = server.post("/v1/completions", i % 2 ? body : stream_body);
        good += answer.status == 200;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(good == 64);
}
