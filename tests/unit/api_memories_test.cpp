// The routes of memories with a fake model: what they check and answer. Real answers are tests/blackbox's matter.
#include "api_server.h"

#include "unit/fake_encoder.h"

#include "base/json.h"

using namespace parallm;
using namespace parallm::test;

namespace {

/** A server whose engine says a text and whose memories are the fake's. */
struct MemoryServer {
  explicit MemoryServer(ServerOptions options = {.port = 0}) {
    Setup setup;
    setup.load = false;
    setup.server = std::move(options);
    setup.engine.memories = true;
    server = std::make_unique<TestServer>(setup);
    ServedModel served = served_model(setup);
    served.memories = make_manager(model, *served.tokenizer, folder, 20 * FakeEncoder::bytes_of_token, 15);
    server->service.ready(std::move(served));
  }

  Response ask(const std::string& method, const std::string& path, const std::string& body = "") {
    return server->ask(method, path, body);
  }
  Response add(const std::string& fields) {
    return ask("POST", "/v1/memories", R"({"model":"alias",)" + fields + "}");
  }
  /** A completion with these fields more. */
  Response complete(const std::string& fields) {
    return ask("POST", "/v1/completions", R"({"model":"alias","prompt":"ab","max_tokens":2,)" + fields + "}");
  }

  Folder folder;
  std::shared_ptr<FakeModel> model = std::make_shared<FakeModel>();
  std::unique_ptr<TestServer> server;
};

json::object error_of(const Response& response) {
  return json::parse(response.body).at("error").as_object();
}

void check_refused(const Response& response, int status, const std::string& param) {
  INFO(response.body);
  CHECK(response.status == status);
  const json::object error = error_of(response);
  CHECK((error.at("param").is_null() ? "" : std::string(error.at("param").as_string())) == param);
}

} // namespace

TEST_CASE("memories over HTTP: add, list, show, delete, under both paths") {
  MemoryServer server;
  const auto added = json::parse(server.add(R"("documents":[{"id":"a/b","text":"xyz","metadata":{"n":1}}])").body);
  CHECK(added.at("data").at(0).at("id") == "a/b");
  CHECK(added.at("data").at(0).at("n_tokens") == 3);
  for (const std::string base : {"/v1/memories", "/v1/models/test/model/memories", "/v1/models/alias/memories"}) {
    const auto list = json::parse(server.ask("GET", base).body);
    REQUIRE(list.at("data").as_array().size() == 1);
    CHECK(list.at("data").at(0).at("metadata").at("n") == 1);
    for (const std::string id : {"/a/b", "/a%2Fb", "/%61/b"}) {
      const auto one = json::parse(server.ask("GET", base + id + "?include=text,tokens").body);
      CHECK(one.at("text") == "xyz");
      CHECK(one.at("token_ids").as_array().size() == 3);
      CHECK(one.at("stale") == false);
    }
    CHECK(server.ask("HEAD", base).status == 200);
    const Response options = server.ask("OPTIONS", base);
    CHECK(options.status == 204);
    CHECK(options.headers.at("allow").find("DELETE") != std::string::npos);
    const Response put = server.ask("PUT", base);
    CHECK(put.status == 405);
    CHECK(put.headers.contains("allow"));
  }
  CHECK(server.ask("DELETE", "/v1/models/test/model/memories/namespaces").status == 404); // no such document
  CHECK(server.ask("POST", "/v1/models/test/model/memories/jobs", "{}").status == 405);
  CHECK(server.ask("POST", "/v1/models/test/model/memoriesX", "{}").status == 404);
  CHECK(server.ask("GET", "/v1/models/other/memories").status == 404);
  CHECK(server.ask("DELETE", "/v1/memories/a/b").status == 200);
  check_refused(server.ask("DELETE", "/v1/memories/a/b"), 404, "id");
  check_refused(server.ask("GET", "/v1/memories/a/b"), 404, "id");
}

TEST_CASE("memories over HTTP: what is wrong with documents") {
  MemoryServer server;
  check_refused(server.ask("POST", "/v1/memories", R"({"documents":[{"text":"x"}]})"), 400, "model");
  check_refused(server.ask("POST", "/v1/memories", R"({"model":"no","documents":[{"text":"x"}]})"), 404, "model");
  check_refused(server.ask("GET", "/v1/memories?model=no"), 404, "model");
  const std::pair<const char*, const char*> wrong[] = {
      {R"("documents":[])", "documents"},
      {R"("x":1)", "documents"},
      {R"("documents":"x")", "documents"},
      {R"("documents":[1])", "documents[0]"},
      {R"("documents":[{}])", "documents[0].text"},
      {R"("documents":[{"text":""}])", "documents[0].text"},
      {R"("documents":[{"text":"<|end|>"}])", "documents[0].text"},
      {R"("documents":[{"text":"x"},{"text":"x","token_ids":[1]}])", "documents[1].text"},
      {R"("documents":[{"token_ids":[-1]}])", "documents[0].token_ids[0]"},
      {R"("documents":[{"token_ids":[264]}])", "documents[0].token_ids[0]"},
      {R"("documents":[{"token_ids":[1.5]}])", "documents[0].token_ids[0]"},
      {R"("documents":[{"token_ids":[]}])", "documents[0].text"},
      {R"("documents":[{"text":"x","id":""}])", "documents[0].id"},
      {R"("documents":[{"text":"x","id":"a\n"}])", "documents[0].id"},
      {R"("documents":[{"text":"x","id":"jobs"}])", "documents[0].id"},
      {R"("documents":[{"text":"x","id":"jobs/a"}])", "documents[0].id"},
      {R"("documents":[{"text":"x","id":"query"}])", "documents[0].id"},
      {R"("documents":[{"text":"x","id":"namespaces"}])", "documents[0].id"},
      {R"("documents":[{"text":"x","id":"a"},{"text":"y","id":"a"}])", "documents[1].id"},
      {R"("documents":[{"text":"x","metadata":{"a":{}}}])", "documents[0].metadata"},
      {R"("documents":[{"text":"x","metadata":{"a":null}}])", "documents[0].metadata"},
      {R"("documents":[{"text":"x","metadata":[]}])", "documents[0].metadata"},
      {R"("documents":[{"text":"x","weight":1}])", "documents[0].weight"},
      {R"("documents":[{"text":"x"}],"namespace":"")", "namespace"},
      {R"("documents":[{"text":"x"}],"namespace":"\u0007")", "namespace"},
      {R"("documents":[{"text":"x"}],"stride":0)", "stride"},
      {R"("documents":[{"text":"x"}],"stride":9,"max_length":8)", "stride"},
      {R"("documents":[{"text":"x"}],"max_length":65)", "max_length"},
      {R"("documents":[{"text":"x"}],"max_length":0)", "max_length"},
      {R"("documents":[{"text":"x"}],"header":"12345678","max_length":8)", "header"},
      {R"("documents":[{"text":"x"}],"if_exists":"skip")", "if_exists"},
      {R"("documents":[{"text":"x"}],"background":1)", "background"},
      {R"("documents":[{"text":"x"}],"pack":"yes")", "pack"}};
  for (const auto& [fields, param] : wrong) {
    INFO(fields);
    check_refused(server.add(fields), 400, param);
  }
  check_refused(server.add("\"documents\":[{\"text\":\"\xff\"}]"), 400, "");
  check_refused(server.add(R"("documents":[{"text":"1234567890123456"}])"), 413, "documents[0]");
  std::string many = R"("documents":[)";
  for (int i = 0; i <= 10'000; ++i) {
    many += i ? ",{}" : "{}";
  }
  check_refused(server.add(many + "]"), 413, "documents");
  CHECK(server.model->count() == 0);
  CHECK(server.add(R"("documents":[{"id":"a","text":"x"}],"surprise":1)").headers.at("x-ignored-fields") == "surprise");
  const Response conflict = server.add(R"("documents":[{"id":"a","text":"y"}],"if_exists":"error")");
  check_refused(conflict, 409, "id");
}

TEST_CASE("memories over HTTP: what is wrong with a request's memory") {
  MemoryServer server;
  REQUIRE(server.add(R"("documents":[{"id":"a","text":"x"},{"id":"b","text":"1234567890"}])").status == 200);
  REQUIRE(server.add(R"("namespace":"t","documents":[{"id":"a","text":"12345678901"}])").status == 200);
  const std::pair<const char*, const char*> wrong[] = {
      {R"("memory":{})", "memory.namespaces"},
      {R"("memory":[])", "memory"},
      {R"("memory":true)", "memory"},
      {R"("memory":{"namespaces":[]})", "memory.namespaces"},
      {R"("memory":{"namespaces":[1]})", "memory.namespaces[0]"},
      {R"("memory":{"namespaces":[""]})", "memory.namespaces"},
      {R"("memory":{"namespaces":["default","default"]})", "memory.namespaces"},
      {R"("memory":{"namespaces":["default"],"namespace":"default"})", "memory.namespace"},
      {R"("memory":{"ids":["a"]})", "memory.namespaces"},
      {R"("memory":{"namespace":"default","ids":[]})", "memory.ids"},
      {R"("memory":{"namespace":"default","ids":["\n"]})", "memory.ids"},
      {R"("memory":{"namespace":"default","filter":1})", "memory.filter"},
      {R"("memory":{"namespace":"default","filter":{"a":{"like":1}}})", "memory.filter.a"},
      {R"("memory":{"namespace":"default","top_k":-1})", "memory.top_k"},
      {R"("memory":{"namespace":"default","top_k":1.5})", "memory.top_k"},
      {R"("memory":{"namespace":"default","similarity_threshold":1.1})", "memory.similarity_threshold"},
      {R"("memory":{"namespace":"default","layers":[3]})", "memory.layers"},
      {R"("memory":{"namespace":"default","layers":"some"})", "memory.layers"},
      {R"("memory":{"namespace":"default","layers":{"from":2,"to":1}})", "memory.layers.to"},
      {R"("memory":{"namespace":"default","layers":{"until":1}})", "memory.layers.until"},
      {R"("memory":{"namespace":"default","position":"random"})", "memory.position"},
      {R"("memory":{"namespace":"default","rank":"l2"})", "memory.rank"},
      {R"("memory":{"namespace":"default","max_documents":0})", "memory.max_documents"},
      {R"("memory":{"namespace":"default","more":1})", "memory.more"},
      {R"("memory":{"namespace":"default","block_tokens":0})", "memory.block_tokens"},
      {R"("memory":{"namespace":"default","block_tokens":65})", "memory.block_tokens"},
      {R"("memory":{"namespace":"default","block_tokens":1.5})", "memory.block_tokens"},
      {R"("memory":{"namespace":"default","on_uncertainty":1})", "memory.on_uncertainty"},
      {R"("memory":{"namespace":"default","on_uncertainty":{"extra_k":1}})", "memory.on_uncertainty.entropy"},
      {R"("memory":{"namespace":"default","on_uncertainty":{"entropy":1}})", "memory.on_uncertainty.extra_k"},
      {R"("memory":{"namespace":"default","on_uncertainty":{"entropy":0,"extra_k":1}})",
       "memory.on_uncertainty.entropy"},
      {R"("memory":{"namespace":"default","on_uncertainty":{"entropy":1,"extra_k":0}})",
       "memory.on_uncertainty.extra_k"},
      {R"("memory":{"namespace":"default","on_uncertainty":{"entropy":1,"extra_k":1,"k":1}})",
       "memory.on_uncertainty.k"},
      {R"("memory":{"inline":[{}]})", "memory.inline[0].text"},
      {R"("memory":{"inline":[{"text":"<|end|>"}]})", "memory.inline[0].text"},
      {R"("memory":{"namespace":"default"},"use_memories":true)", "memory"},
      {R"("memories":[])", "memories"},
      {R"("memories":[1])", "memories[0]"},
      {R"("memory_namespace":"")", "memory_namespace"},
      {R"("memory_topk":-1)", "memory_topk"},
      {R"("memory_similarity_threshold":2)", "memory_similarity_threshold"}};
  for (const auto& [fields, param] : wrong) {
    INFO(fields);
    check_refused(server.complete(fields), 400, param);
  }
  check_refused(server.complete(R"("memory":{"namespaces":["default","none"]})"), 404, "memory.namespaces");
  check_refused(server.complete(R"("memory":{"namespace":"default","ids":["a","none"]})"), 404, "memory.ids");
  check_refused(server.complete(R"("memory_namespace":"none")"), 404, "memory_namespace");
  check_refused(server.complete(R"("memories":["none"])"), 404, "memories");
  check_refused(server.complete(R"("memory":{"namespaces":["default","t"]})"), 413, "memory");
  check_refused(server.complete(R"("memory":{"inline":[{"text":"1234567890123456"}]})"), 413, "memory.inline[0]");
  CHECK(server.complete(R"("memory":null)").status == 200);
  CHECK(server.complete(R"("use_memories":false,"memory_namespace":"none")").status == 200);
}

TEST_CASE("memories over HTTP: what is wrong with a path or its parameters") {
  MemoryServer server;
  REQUIRE(server.add(R"("documents":[{"id":"a","text":"x"}])").status == 200);
  check_refused(server.ask("GET", "/v1/memories?limit=0"), 400, "limit");
  check_refused(server.ask("GET", "/v1/memories?limit=1001"), 400, "limit");
  check_refused(server.ask("GET", "/v1/memories?limit=many"), 400, "limit");
  check_refused(server.ask("GET", "/v1/memories?limit="), 400, "limit");
  check_refused(server.ask("GET", "/v1/memories?filter=%7B"), 400, "filter");
  check_refused(server.ask("GET", "/v1/memories?filter=1"), 400, "filter");
  check_refused(server.ask("GET", "/v1/memories?namespace="), 400, "namespace");
  check_refused(server.ask("GET", "/v1/memories?namespace=%00"), 400, "namespace");
  check_refused(server.ask("GET", "/v1/memories?namespace=%ff"), 400, "namespace");
  check_refused(server.ask("GET", "/v1/memories?after=%00"), 400, "after");
  check_refused(server.ask("GET", "/v1/memories?after=%c3"), 400, "after");
  check_refused(server.ask("GET", "/v1/memories?unknown=1"), 400, "unknown");
  check_refused(server.ask("GET", "/v1/memories/%ff"), 400, "id");
  check_refused(server.ask("GET", "/v1/memories/%00"), 400, "id");
  check_refused(server.ask("GET", "/v1/memories/" + std::string(513, 'x')), 400, "id");
  check_refused(server.ask("DELETE", "/v1/memories/%ff"), 400, "id");
  check_refused(server.ask("GET", "/v1/memories/a?include=vector"), 400, "include");
  check_refused(server.ask("DELETE", "/v1/memories"), 400, "namespace");
  check_refused(server.ask("GET", "/v1/memories/namespaces?namespace=x"), 400, "namespace");
  check_refused(server.ask("GET", "/v1/memories/jobs?model=no"), 404, "model");
  check_refused(server.ask("GET", "/v1/memories/jobs/none"), 404, "");
  check_refused(server.ask("DELETE", "/v1/memories/jobs/none"), 404, "");
  for (const std::string id : {"..", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "a%2f..%2fa"}) {
    check_refused(server.ask("GET", "/v1/memories/" + id), 404, "id");
  }
  const auto query = [&](const std::string& fields) {
    return server.ask("POST", "/v1/memories/query", R"({"model":"alias",)" + fields + "}");
  };
  check_refused(query(R"("input":"x")"), 400, "namespaces");
  check_refused(query(R"("namespace":"default")"), 400, "input");
  check_refused(query(R"("namespace":"default","input":"")"), 400, "input");
  check_refused(query(R"("namespace":"default","input":"x","top_k":0)"), 400, "top_k");
  check_refused(query(R"("namespace":"default","input":"x","top_k":101)"), 400, "top_k");
  check_refused(query(R"("namespace":"none","input":"x")"), 404, "namespaces");
  CHECK(query(R"("namespace":"default","input":"x")").status == 200);
}

TEST_CASE("memories over HTTP: a server without them") {
  TestServer server;
  check_refused(server.post("/v1/completions", R"({"model":"alias","prompt":"a","memory":{}})"), 400, "memory");
  check_refused(
      server.post("/v1/completions", R"({"model":"alias","prompt":"a","use_memories":true})"), 400, "use_memories");
  for (const std::string path : {"/v1/memories", "/v1/memories/jobs", "/v1/models/alias/memories"}) {
    const Response response = server.ask("GET", path);
    CHECK(response.status == 400);
    CHECK(response.body.find("--use-extended-mind") != std::string::npos);
  }
  CHECK(server.ask("GET", "/metrics").body.find("memory") == std::string::npos);
}

TEST_CASE("memories over HTTP: an answer says which it had, and figures count them") {
  MemoryServer server;
  REQUIRE(server.add(R"("documents":[{"id":"a","text":"abc"}])").status == 200);
  const auto answer = json::parse(server.complete(R"("n":2,"memory":{"namespace":"default"})").body);
  for (size_t i = 0; i < 2; ++i) {
    const auto& memory = answer.at("choices").at(i).at("memory");
    CHECK(memory.at("tokens_searched") == 3);
    CHECK(memory.at("documents").at(0).at("id") == "a");
  }
  const Response stream = server.complete(R"("stream":true,"memory":{"namespace":"default"})");
  size_t count = 0;
  for (size_t at = 0; (at = stream.body.find("tokens_searched", at)) != std::string::npos; ++at) {
    ++count;
  }
  CHECK(count == 1);
  const std::string figures = server.ask("GET", "/metrics").body;
  for (const char* line :
       {"mlx_parallm_memory_ram_bytes{model_name=\"test/model\"} 300",
        "mlx_parallm_memory_ram_limit_bytes{model_name=\"test/model\"} 2000",
        "mlx_parallm_memory_documents_read_total{model_name=\"test/model\"} 1",
        "mlx_parallm_memory_tokens_read_total{model_name=\"test/model\"} 3",
        "mlx_parallm_memory_requests_total{model_name=\"test/model\"} 2",
        "mlx_parallm_memory_requests_tokens_total{model_name=\"test/model\"} 6"}) {
    CHECK_MESSAGE(figures.find(line) != std::string::npos, line);
  }
  const auto debug = json::parse(server.ask("GET", "/debug/metrics").body);
  CHECK(debug.at("memory").at("memory_requests_total") == 2);
}

TEST_CASE("memories over HTTP: a job in the background, its progress and its end") {
  MemoryServer server;
  server.model->hold();
  const Response begun = server.add(R"("background":true,"documents":[{"id":"a","text":"abc"},{"text":"d"}])");
  CHECK(begun.status == 202);
  const std::string id(json::parse(begun.body).at("id").as_string());
  const std::string path = "/v1/models/test/model/memories/jobs/" + id;
  server.model->wait_reading(1);
  const auto running = json::parse(server.ask("GET", path).body);
  CHECK(running.at("status") == "running");
  CHECK(running.at("tokens").at("total") == 6); // with a begin token each
  CHECK(running.at("documents").at("done") == 0);
  CHECK_FALSE(json::parse(server.ask("GET", "/v1/memories/jobs").body).at("data").at(0).as_object().contains("data"));
  server.model->let_go();
  CHECK(soon([&] { return json::parse(server.ask("GET", path).body).at("status") == "completed"; }));
  const auto ended = json::parse(server.ask("GET", path).body);
  CHECK(ended.at("documents").at("done") == 2);
  CHECK(ended.at("data").at(0).at("id") == "a");
  CHECK(ended.at("tokens").at("done") == 6);
  check_refused(server.ask("DELETE", path), 409, "");
}

TEST_CASE("memories over HTTP: who waits for a job that is cancelled is told") {
  MemoryServer server;
  server.model->hold();
  auto running = std::async(std::launch::async, [&] { return server.add(R"("documents":[{"text":"abc"}])"); });
  server.model->wait_reading(1);
  auto waiting = std::async(std::launch::async, [&] { return server.add(R"("documents":[{"text":"xyz"}])"); });
  const auto jobs = [&] { return json::parse(server.ask("GET", "/v1/memories/jobs").body).at("data").as_array(); };
  REQUIRE(soon([&] { return jobs().size() == 2; }));
  CHECK(jobs()[0].at("status") == "queued");
  for (const json::value& job : jobs()) {
    CHECK(server.ask("DELETE", "/v1/memories/jobs/" + std::string(job.at("id").as_string())).status == 200);
  }
  CHECK(running.get().status == 409);
  CHECK(waiting.get().status == 409);
  server.model->let_go();
  CHECK(server.add(R"("documents":[{"text":"abc"}])").status == 200);
}

TEST_CASE("memories over HTTP: readings that never end hold up neither other requests nor the end") {
  MemoryServer server({.port = 0, .drain_limit = std::chrono::milliseconds(300)});
  REQUIRE(server.add(R"("documents":[{"id":"a","text":"abc"}])").status == 200);
  server.model->hold();
  std::vector<std::thread> threads;
  for (int i = 0; i < 20; ++i) { // more than there are threads for them
    threads.emplace_back([port = server.server->server.port()] { // a late one finds the server gone
      try {
        Client client(port);
        client.ask(
            "POST",
            "/v1/completions",
            R"({"model":"alias","prompt":"ab","max_tokens":2,"memory":{"inline":[{"text":"xyz"}]}})");
        client.read();
      } catch (const std::runtime_error&) { // closed
      }
    });
  }
  server.model->wait_reading(1);
  CHECK(server.complete(R"("n":1)").status == 200);
  CHECK(server.ask("GET", "/v1/memories/jobs").status == 200);
  CHECK(server.ask("GET", "/health").status == 200);
  const auto begun = std::chrono::steady_clock::now();
  server.server.reset();
  CHECK(std::chrono::steady_clock::now() - begun < std::chrono::seconds(5));
  for (auto& thread : threads) {
    thread.join();
  }
}

TEST_CASE("memories over HTTP: reading for a request takes no longer than the request may") {
  MemoryServer server({.port = 0, .request_timeout = std::chrono::milliseconds(300)});
  server.model->hold();
  const std::string mine = R"("memory":{"inline":[{"text":"xyz"}]})";
  const Response late = server.complete(mine);
  CHECK(late.status == 504);
  server.model->wait_reading(0);
  server.model->let_go();
  CHECK(server.complete(mine).status == 200);
}

TEST_CASE("memories over HTTP: a client that leaves ends the reading for it, and for it alone") {
  MemoryServer server;
  server.model->hold();
  const std::string body = R"({"model":"alias","prompt":"ab","memory":{"inline":[{"text":"xyz"}]}})";
  auto reads = std::make_unique<Client>(server.server->server.port());
  reads->ask("POST", "/v1/completions", body);
  server.model->wait_reading(1);
  auto waits = std::make_unique<Client>(server.server->server.port());
  waits->ask("POST", "/v1/completions", body);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  reads.reset();
  CHECK(soon([&] { return server.model->count() == 2; })); // it goes on by itself
  server.model->let_go();
  CHECK(waits->read().status == 200);
  // What is sent in the meantime is the next request.
  server.model->hold();
  Client client(server.server->server.port());
  client.ask("POST", "/v1/completions", R"({"model":"alias","prompt":"ab","memory":{"inline":[{"text":"uvw"}]}})");
  client.ask("GET", "/health");
  server.model->wait_reading(1);
  server.model->let_go();
  CHECK(client.read().status == 200);
  CHECK(client.read().body.find("ok") != std::string::npos);
}
