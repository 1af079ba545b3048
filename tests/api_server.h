// The real server on a free port, with the real engine and a runner that says a
// given text: what the api tests talk to.
#pragma once

#include "api/server.h"
#include "http_client.h"
#include "unit/tokenizers.h"

#include <doctest/doctest.h>

#include <deque>
#include <functional>
#include <map>
#include <thread>

namespace parallm::test {

/** Every row says `text`, a byte a token, then the end token (under a grammar:
 * the first token that it allows); each step takes `pause`. Prompt tokens have
 * logprob -1. */
class SayingRunner : public Runner {
 public:
  SayingRunner(std::string text, std::chrono::milliseconds pause) : text_(std::move(text)), pause_(pause) {}

  void launch(const Plan& plan) override {
    for (const Join& join : plan.joins) {
      logprobs_[join.slot] = join.sampling.logprobs;
    }
    std::vector<RowResult> results;
    for (const RowStep& row : plan.rows) {
      RowResult result;
      result.slot = row.slot;
      for (int32_t id : row.score_ids) {
        result.prompt.push_back({{id, -1.0f}, top(row.slot, id)});
      }
      if (row.sample) {
        int32_t id = row.allowed.empty() ? said(row.draw_index) : first_allowed(row.allowed);
        result.sampled = {{{id, -0.5f}, top(row.slot, id)}};
      }
      results.push_back(std::move(result));
    }
    steps_.push_back(std::move(results));
  }
  std::vector<RowResult> collect() override {
    std::this_thread::sleep_for(pause_);
    auto results = std::move(steps_.front());
    steps_.pop_front();
    return results;
  }
  void reset() override {
    steps_.clear();
  }

  static constexpr int32_t end_id = 261;

 private:
  int32_t said(int index) const {
    return index < static_cast<int>(text_.size()) ? static_cast<unsigned char>(text_[index]) : end_id;
  }
  static int32_t first_allowed(const std::vector<uint32_t>& words) {
    int32_t id = 0;
    while (!(words.at(id / 32) >> (id % 32) & 1)) {
      ++id;
    }
    return id;
  }
  std::vector<TokenLogprob> top(int slot, int32_t id) {
    if (logprobs_[slot] < 1) {
      return {};
    }
    return {{id, -0.5f}, {'z', -2.25f}};
  }

  std::string text_;
  std::chrono::milliseconds pause_;
  std::map<int, int> logprobs_;
  std::deque<std::vector<RowResult>> steps_;
};

struct Setup {
  std::string says = "hi there";
  std::chrono::milliseconds pause{0};
  bool load = true;
  bool chat_template = true;
  ServerOptions server{.port = 0};
  ServiceOptions service{.ids = {"test/model", "alias"}, .path = "test/model"};
  EngineOptions engine{
      .max_rows = 8,
      .max_waiting = 64,
      .max_context = 256,
      .block_size = 16,
      .blocks = 512,
      .end_ids = {SayingRunner::end_id},
      .vocabulary = 264};
};

inline ServedModel served_model(const Setup& setup) {
  ServedModel model;
  model.tokenizer = std::make_shared<Tokenizer>(byte_level());
  if (setup.chat_template) {
    model.chat_template = std::make_shared<ChatTemplate>(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        "{}");
  }
  std::promise<std::shared_ptr<const Grammars>> grammars;
  grammars.set_value(std::make_shared<Grammars>(*model.tokenizer, setup.engine.vocabulary, setup.engine.end_ids));
  model.grammars = grammars.get_future().share();
  model.engine = std::make_shared<Engine>(
      setup.engine, [setup](EngineOptions&) { return std::make_unique<SayingRunner>(setup.says, setup.pause); });
  return model;
}

class TestServer {
 public:
  explicit TestServer(Setup setup = {}) : service(setup.service), server(setup.server, service) {
    if (setup.load) {
      service.ready(served_model(setup));
    }
    thread_ = std::thread([this] { server.run(); });
  }
  ~TestServer() {
    server.stop();
    thread_.join();
  }

  Response ask(
      const std::string& method,
      const std::string& path,
      const std::string& body = "",
      const std::string& headers = "") {
    Client client(server.port());
    client.ask(method, path, body, headers);
    return client.read(method == "HEAD");
  }
  Response post(const std::string& path, const std::string& body) {
    return ask("POST", path, body);
  }

  Service service;
  Server server;

 private:
  std::thread thread_;
};

/** Waits up to 60 s for `holds`. */
inline bool soon(const std::function<bool()>& holds) {
  for (int i = 0; i < 6000 && !holds(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return holds();
}

} // namespace parallm::test
