#include "api_server.h"

#include "base/json.h"

using namespace parallm;
using namespace parallm::test;

namespace {

json::value parsed(const Response& response) {
  return json::parse(response.body);
}

std::string text_of(const json::value& answer, size_t choice = 0) {
  return std::string(answer.at("choices").at(choice).at("text").as_string());
}

// Ids and times differ from run to run.
std::string settled(std::string text) {
  for (std::string key : {"\"id\":\"", "\"created\":"}) {
    for (size_t at = 0; (at = text.find(key, at)) != std::string::npos;) {
      at += key.size();
      text.erase(at, text.find_first_of("\",", at) - at);
    }
  }
  return text;
}

std::string completion(const std::string& fields) {
  return R"({"model":"alias","prompt":"ab")" + fields + "}";
}

std::string chat(const std::string& fields) {
  return R"({"model":"alias","messages":[{"role":"user","content":"ab"}])" + fields + "}";
}

} // namespace

TEST_CASE("a completion is the text, whole and unstripped") {
  TestServer server({.says = " hi "});
  auto answer = parsed(server.post("/v1/completions", completion("")));
  CHECK(text_of(answer) == " hi ");
  CHECK(answer.at("model") == "alias");
  CHECK(answer.at("object") == "text_completion");
  CHECK(answer.at("choices").at(0).at("finish_reason") == "stop");
  CHECK(answer.at("usage").at("prompt_tokens") == 2);
  CHECK(answer.at("usage").at("completion_tokens") == 5); // the end token too
}

TEST_CASE("max_tokens ends with length") {
  TestServer server;
  auto answer = parsed(server.post("/v1/completions", completion(R"(,"max_tokens":3)")));
  CHECK(text_of(answer) == "hi ");
  CHECK(answer.at("choices").at(0).at("finish_reason") == "length");
}

TEST_CASE("prompts and n: a choice each, ordered by prompt") {
  TestServer server;
  auto answer = parsed(
      server.post("/v1/completions", R"({"model":"alias","prompt":["a","bc"],"n":2,"echo":true,"max_tokens":2})"));
  REQUIRE(answer.at("choices").as_array().size() == 4);
  CHECK(text_of(answer, 0) == "ahi");
  CHECK(text_of(answer, 3) == "bchi");
  CHECK(answer.at("choices").at(3).at("index") == 3);
  CHECK(answer.at("usage").at("prompt_tokens") == 3);
  CHECK(answer.at("usage").at("completion_tokens") == 8);
  auto ids =
      parsed(server.post("/v1/completions", R"({"model":"alias","prompt":[[97],[98,99]],"echo":true,"max_tokens":1})"));
  CHECK(text_of(ids, 1) == "bch");
}

TEST_CASE("stop strings cut the text across tokens") {
  TestServer server;
  auto answer = parsed(server.post("/v1/completions", completion(R"(,"stop":["the","zz"])")));
  CHECK(text_of(answer) == "hi ");
  CHECK(answer.at("choices").at(0).at("finish_reason") == "stop");
}

TEST_CASE("echo with logprobs: the first token's is null") {
  TestServer server;
  auto answer = parsed(server.post("/v1/completions", completion(R"(,"echo":true,"logprobs":1,"max_tokens":1)")));
  CHECK(
      json_text(answer.at("choices").at(0).at("logprobs")) ==
      R"({"tokens":["a","b","h"],"token_logprobs":[null,-1.0,-0.5],)"
      R"("top_logprobs":[null,{"b":-0.5},{"h":-0.5}],"text_offset":[0,1,2]})");
  auto scored = parsed(server.post("/v1/completions", completion(R"(,"echo":true,"logprobs":0,"max_tokens":0)")));
  CHECK(text_of(scored) == "ab");
  CHECK(scored.at("choices").at(0).at("logprobs").at("tokens").as_array().size() == 2);
}

TEST_CASE("chat: exact bytes of a stream") {
  TestServer server({.says = "hi"});
  auto answer = server.post(
      "/v1/chat/completions", chat(R"(,"stream":true,"stream_options":{"include_usage":true},"max_tokens":1)"));
  CHECK(answer.headers["content-type"] == "text/event-stream; charset=utf-8");
  std::string head =
      R"(data: {"id":"","object":"chat.completion.chunk","created":,"model":"alias","system_fingerprint":"fp_mlx_parallm","choices":[)";
  CHECK(
      settled(answer.body) ==
      head +
          R"({"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null})" +
          "\n\n" + head + R"({"index":0,"delta":{"content":"h"},"logprobs":null,"finish_reason":null}],"usage":null})" +
          "\n\n" + head + R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null})" + "\n\n" +
          head +
          R"(],"usage":{"prompt_tokens":19,"completion_tokens":1,"total_tokens":20,"prompt_tokens_details":{"cached_tokens":0}}})" +
          "\n\ndata: [DONE]\n\n");
}

TEST_CASE("n and stream together") {
  TestServer server;
  auto answer = server.post("/v1/completions", completion(R"(,"stream":true,"n":3,"max_tokens":4)"));
  std::map<int64_t, std::string> texts;
  size_t at = 0;
  while ((at = answer.body.find("data: {", at)) != std::string::npos) {
    size_t end = answer.body.find("\n\n", at);
    auto event = json::parse(answer.body.substr(at + 6, end - at - 6));
    texts[event.at("choices").at(0).at("index").as_int64()] += text_of(event);
    at = end;
  }
  CHECK(texts == std::map<int64_t, std::string>{{0, "hi t"}, {1, "hi t"}, {2, "hi t"}});
  CHECK(answer.body.ends_with("data: [DONE]\n\n"));
}

TEST_CASE("chat goes on with the last message") {
  TestServer server;
  auto answer = parsed(
      server.post("/tokenize", R"({"messages":[{"role":"assistant","content":"x  "}],"continue_final_message":true})"));
  CHECK(answer.at("count") == 14); // "[assistant]x  "
}

TEST_CASE("perplexity, tokenize, detokenize, models") {
  TestServer server;
  auto ppl = parsed(server.post("/v1/perplexity", R"({"model":"alias","text":"abc"})"));
  CHECK(ppl.at("token_count") == 2);
  CHECK(ppl.at("avg_nll").as_double() == doctest::Approx(1));
  auto one = parsed(server.post("/v1/perplexity", R"({"model":"alias","text":"a"})"));
  CHECK(one.at("ppl").as_double() == 1);
  CHECK(parsed(server.post("/tokenize", R"({"prompt":"hello"})")).at("tokens").at(0) == 259);
  CHECK(parsed(server.post("/detokenize", R"({"tokens":[259,33]})")).at("prompt") == "hello!");
  auto models = parsed(server.ask("GET", "/v1/models"));
  CHECK(models.at("data").at(0).at("id") == "test/model");
  CHECK(models.at("data").at(0).at("status") == "loaded");
  CHECK(server.ask("GET", "/v1/models/test/model").status == 200);
  CHECK(server.ask("GET", "/v1/models/other").status == 404);
}

TEST_CASE("constrained output follows its grammar") {
  TestServer server;
  auto chosen = parsed(server.post("/v1/completions", completion(R"(,"guided_choice":["ok"],"n":2)")));
  CHECK(text_of(chosen, 0) == "ok");
  CHECK(text_of(chosen, 1) == "ok");
  auto schema = parsed(server.post(
      "/v1/chat/completions",
      chat(R"(,"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"const":7}}})")));
  CHECK(schema.at("choices").at(0).at("message").at("content") == "7");
  auto bad = server.post("/v1/completions", completion(R"(,"guided_regex":"(")"));
  CHECK(bad.status == 400);
  auto two = server.post("/v1/completions", completion(R"(,"guided_regex":"a","guided_choice":["a"])"));
  CHECK(parsed(two).at("error").at("param") == "guided_choice");
}

TEST_CASE("unknown fields are named, and refused under strict") {
  Setup setup;
  {
    TestServer server(setup);
    auto answer = server.post("/v1/completions", completion(R"(,"wat":1,"user":"u")"));
    CHECK(answer.status == 200);
    CHECK(answer.headers["x-ignored-fields"] == "wat");
  }
  setup.service.strict = true;
  TestServer server(setup);
  auto answer = server.post("/v1/completions", completion(R"(,"wat":1)"));
  CHECK(parsed(answer).at("error").at("param") == "wat");
}

TEST_CASE("each malformed completion is a 400 that names its field") {
  TestServer server;
  const std::pair<const char*, const char*> cases[] = {
      {R"(,"temperature":"hot")", "temperature"},
      {R"(,"temperature":-1)", "temperature"},
      {R"(,"temperature":1e999)", "temperature"},
      {R"(,"top_p":0)", "top_p"},
      {R"(,"top_p":1.5)", "top_p"},
      {R"(,"top_k":1.5)", "top_k"},
      {R"(,"n":0)", "n"},
      {R"(,"n":1000000)", "n"},
      {R"(,"n":true)", "n"},
      {R"(,"n":2,"best_of":3)", "best_of"},
      {R"(,"max_tokens":-1)", "max_tokens"},
      {R"(,"max_tokens":99999999999999999999)", "max_tokens"},
      {R"(,"max_tokens":255)", "max_tokens"},
      {R"(,"logprobs":21)", "logprobs"},
      {R"(,"stop":[1])", "stop"},
      {R"(,"stop":{})", "stop"},
      {R"(,"seed":"x")", "seed"},
      {R"(,"logit_bias":{"264":1})", "logit_bias"},
      {R"(,"logit_bias":{"5":"x"})", "logit_bias"},
      {R"(,"stop_token_ids":[264])", "stop_token_ids[0]"},
      {R"(,"stream":1)", "stream"},
      {R"(,"stream_options":{})", "stream_options"},
      {R"(,"suffix":"x")", "suffix"},
      {R"(,"prompt":null)", "prompt"},
      {R"(,"prompt":[])", "prompt"},
      {R"(,"prompt":"")", "prompt"},
      {R"(,"prompt":[1,264])", "prompt[1]"},
      {R"(,"prompt":[1,"a"])", "prompt[1]"},
      {R"(,"prompt":[[1],[-1]])", "prompt[1][0]"},
      {R"(,"prompt":["a",1])", "prompt[1]"},
      {R"(,"model":null)", "model"},
      {R"(,"response_format":{"type":"x"})", "response_format.type"},
  };
  for (auto [fields, param] : cases) {
    CAPTURE(fields);
    auto answer = server.post("/v1/completions", completion(fields));
    CHECK(answer.status == 400);
    CHECK(parsed(answer).at("error").at("param") == param);
  }
  std::string nul = R"(,"temperature":null,"stop":null,"n":null)";
  CHECK(server.post("/v1/completions", completion(nul)).status == 200);
}

TEST_CASE("each malformed chat is a 400 that names its field") {
  TestServer server;
  const std::pair<const char*, const char*> cases[] = {
      {R"(,"messages":[])", "messages"},
      {R"(,"messages":null)", "messages"},
      {R"(,"messages":[1])", "messages[0]"},
      {R"(,"messages":[{"content":"x"}])", "messages[0].role"},
      {R"(,"messages":[{"role":"user"}])", "messages[0].content"},
      {R"(,"messages":[{"role":"user","content":[{"type":"image_url"}]}])", "messages[0].content[0]"},
      {R"(,"tools":[{"type":"function"}])", "tools"},
      {R"(,"tool_choice":"required")", "tool_choice"},
      {R"(,"top_logprobs":2)", "top_logprobs"},
      {R"(,"logprobs":1)", "logprobs"},
      {R"(,"max_completion_tokens":-1)", "max_completion_tokens"},
      {R"(,"chat_template":"x")", "chat_template"},
      {R"(,"continue_final_message":true,"add_generation_prompt":true)", "continue_final_message"},
  };
  for (auto [fields, param] : cases) {
    CAPTURE(fields);
    auto answer = server.post("/v1/chat/completions", chat(fields));
    CHECK(answer.status == 400);
    CHECK(parsed(answer).at("error").at("param") == param);
  }
}

TEST_CASE("bodies that are no JSON object") {
  TestServer server;
  std::string deep(100000, '[');
  const std::string bodies[] = {
      "",
      "{",
      "[]",
      "1",
      "null",
      "{\"a\":NaN}",
      "{\"a\":\"\xFF\"}",
      R"({"a":"\ud800"})",
      "{} x",
      deep,
      std::string("\0", 1)};
  for (const std::string& body : bodies) {
    CAPTURE(body.substr(0, 20));
    auto answer = server.post("/v1/completions", body);
    CHECK(answer.status == 400);
    CHECK(parsed(answer).at("error").at("type") == "invalid_request_error");
  }
}

TEST_CASE("a prompt over the context: both lengths in the text") {
  TestServer server;
  auto answer = server.post("/v1/completions", R"({"model":"alias","prompt":")" + std::string(300, 'a') + "\"}");
  CHECK(answer.status == 400);
  auto error = parsed(answer).at("error");
  CHECK(error.at("code") == "context_length_exceeded");
  CHECK(error.at("message").as_string().find("256") != std::string::npos);
  CHECK(error.at("message").as_string().find("300") != std::string::npos);
}

TEST_CASE("an unknown model is a 404 with OpenAI's words") {
  TestServer server;
  auto answer = server.post("/v1/completions", R"({"model":"x","prompt":"a"})");
  CHECK(answer.status == 404);
  CHECK(parsed(answer).at("error").at("message") == "The model `x` does not exist");
}

TEST_CASE("a model without a chat template says which flag gives one") {
  TestServer server({.chat_template = false});
  auto answer = server.post("/v1/chat/completions", chat(""));
  CHECK(answer.status == 400);
  json::value error = parse_json(answer.body, "answer").at("error");
  CHECK(error.at("param") == "messages");
  CHECK(std::string(error.at("message").as_string()).find("--chat-template FILE") != std::string::npos);
  CHECK(server.post("/tokenize", R"({"messages":[{"role":"user","content":"x"}]})").status == 400);
}
