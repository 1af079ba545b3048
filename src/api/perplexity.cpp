// POST /v1/perplexity (the old server's): how well the model predicts a text,
// natural logarithm, temperature 1.
// {"model", "text"} -> {"model", "token_count", "avg_nll", "ppl"}; token_count
// is of the predicted tokens, so one less than the text's. A text longer than
// the context is an error: windows would score other probabilities.
#include "api/choices.h"
#include "api/routes.h"
#include "api/schema.h"

#include <cmath>

namespace parallm {

namespace {

json::object result(const std::string& model, size_t count, double nll) {
  double average = count ? nll / static_cast<double>(count) : 0.0;
  json::object out{{"model", model}, {"token_count", count}, {"avg_nll", average}};
  out["ppl"] = std::exp(average);
  return out;
}

class Perplexity : public Live {
 public:
  Perplexity(Service& service, std::string model, Request request)
      : engine_(service.model().engine),
        model_(std::move(model)),
        count_(request.prompt.size() - 1),
        stream_(engine_->generate(std::move(request))) {}

  void on_ready(std::function<void()> wake) override {
    stream_.on_ready(std::move(wake));
  }

  Progress advance() override {
    while (auto event = stream_.try_next()) {
      if (event->error) {
        throw *event->error;
      }
      for (const Scored& scored : event->prompt) {
        nll_ -= scored.token.logprob;
      }
      if (event->finish == Finish::cancelled) {
        fail(Kind::unavailable, "[engine] the request was cancelled");
      }
      if (event->finish != Finish::none) {
        return {json_text(result(model_, count_, nll_)), true};
      }
    }
    return {};
  }

 private:
  std::shared_ptr<Engine> engine_; // outlives the stream
  std::string model_;
  size_t count_;
  double nll_ = 0;
  Stream stream_;
};

} // namespace

Reply perplexity(const HttpRequest& request, Service& service) {
  const ServedModel& served = service.model();
  json::object body = read_body(request);
  Fields fields(body);
  std::string model = read_model(fields, service);
  auto text = fields.string("text");
  if (!text) {
    fail_field("text", "[text] is required; got none");
  }
  Headers headers = ignored_fields(fields, service);
  Request row;
  row.prompt = served.tokenizer->encode(*text, true);
  if (row.prompt.size() < 2) {
    return Answer{.body = json_text(result(model, 0, 0)), .headers = headers};
  }
  row.max_tokens = fit_tokens(row.prompt.size(), 0, {}, served.engine->options().max_context);
  row.sampling.prompt_logprobs = true;
  row.sampling.logprobs = 0;
  auto live = std::make_unique<Perplexity>(service, model, std::move(row));
  live->headers = std::move(headers);
  return live;
}

} // namespace parallm
