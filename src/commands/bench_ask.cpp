#include "commands/bench_ask.h"

#include "base/random_hex.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>

namespace parallm {

namespace {

/** Lets pass one sequence alone. */
class Forced : public TokenMask {
 public:
  explicit Forced(std::vector<int32_t> ids) : ids_(std::move(ids)) {}

  void allowed(std::span<uint32_t> words) override {
    std::fill(words.begin(), words.end(), 0);
    const int32_t id = ids_[std::min(at_, ids_.size() - 1)];
    words[id / 32] |= 1u << (id % 32);
  }
  void accept(int32_t /*token*/) override {
    ++at_;
  }

 private:
  std::vector<int32_t> ids_;
  size_t at_ = 0;
};

Request request_of(const Question& question, const Recall& recall) {
  Request request;
  request.prompt = question.prompt;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.recall = recall;
  return request;
}

Judged read(Stream& stream, const Question& question) {
  Judged out;
  out.exact = true;
  while (true) {
    Event event = stream.next();
    if (event.error) {
      throw *event.error;
    }
    if (event.token) {
      out.logprob += event.token->token.logprob / static_cast<double>(question.answer.size());
      out.exact = out.exact && event.token->top.at(0).id == event.token->token.id;
      out.steps.push_back(std::move(*event.token));
    }
    if (event.token_use) {
      out.use.tokens.push_back(std::move(*event.token_use));
    }
    if (event.finish != Finish::none) {
      out.use.whole = std::move(event.whole_use).value_or(MemoryUse{});
      check(out.steps.size() == question.answer.size(), "an answer has all of its tokens");
      return out;
    }
  }
}

/** Streams of `make`'s requests, which `take` gets in order; so many at once that no step of the engine runs short. */
void ask_all(
    LanguageModel& model,
    size_t count,
    const std::function<Request(size_t)>& make,
    const std::function<void(size_t, Stream&)>& take) {
  const auto& engine = model.engine().options();
  const size_t most = std::min<size_t>(2 * engine.max_rows, std::max(1, engine.max_waiting / 2));
  std::deque<Stream> asked;
  for (size_t taken = 0; taken < count; ++taken) {
    // The first one goes alone, so that the others find what their prompts have in common.
    while (taken + asked.size() < count && asked.size() < (taken == 0 ? 1 : most)) {
      asked.push_back(model.engine().generate(make(taken + asked.size())));
    }
    take(taken, asked.front());
    asked.pop_front();
  }
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.at(values.size() / 2);
}

} // namespace

Question make_question(const Tokenizer& tokenizer, const std::string& text, const std::string& answer, bool special) {
  const auto prompt = tokenizer.encode(text, special), whole = tokenizer.encode(text + answer, special);
  const auto [end, other] = std::mismatch(prompt.begin(), prompt.end(), whole.begin(), whole.end());
  Question out{{prompt.begin(), end}, {whole.begin() + (end - prompt.begin()), whole.end()}};
  check(!out.answer.empty(), "an answer has tokens");
  return out;
}

std::vector<Judged> judge(
    LanguageModel& model,
    const std::vector<Question>& questions,
    const RecallOf& recall,
    int top,
    const std::function<void()>& progress) {
  std::vector<Judged> out;
  const auto make = [&](size_t i) {
    Request request = request_of(questions[i], recall(i));
    request.max_tokens = static_cast<int>(questions[i].answer.size());
    request.sampling.logprobs = top;
    request.mask = std::make_shared<Forced>(questions[i].answer);
    return request;
  };
  ask_all(model, questions.size(), make, [&](size_t i, Stream& stream) {
    out.push_back(read(stream, questions[i]));
    progress();
  });
  return out;
}

std::vector<std::string> generate_all(LanguageModel& model, std::vector<Request> requests) {
  std::vector<std::string> out;
  const auto make = [&](size_t i) { return std::move(requests[i]); };
  ask_all(model, requests.size(), make, [&](size_t, Stream& stream) {
    std::vector<int32_t> ids;
    for (Finish finish = Finish::none; finish == Finish::none;) {
      const Event event = stream.next();
      if (event.error) {
        throw *event.error;
      }
      finish = event.finish;
      if (event.token && finish != Finish::stop) {
        ids.push_back(event.token->token.id);
      }
    }
    out.push_back(model.tokenizer().decode(ids, true));
  });
  return out;
}

double greatest_difference(const std::vector<Judged>& a, const std::vector<Judged>& b) {
  double greatest = 0;
  const auto compare = [&](float x, float y) {
    greatest = std::max(greatest, std::isfinite(x) && std::isfinite(y) ? std::abs(double(x) - y) : INFINITY);
  };
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t t = 0; t < a[i].steps.size(); ++t) {
      const Scored &x = a[i].steps[t], &y = b.at(i).steps.at(t);
      compare(x.token.logprob, y.token.logprob);
      for (const TokenLogprob& one : x.top) {
        const auto same = std::find_if(y.top.begin(), y.top.end(), [&](auto& other) { return other.id == one.id; });
        if (same != y.top.end()) {
          compare(one.logprob, same->logprob);
        }
      }
    }
  }
  return greatest;
}

Speed measure(
    LanguageModel& model,
    const std::vector<Question>& questions,
    const RecallOf& recall,
    size_t count,
    int tokens) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  std::vector<double> first, rate;
  for (size_t i = 0; i < std::min(count, questions.size()); ++i) {
    const auto start = Clock::now();
    Request request = request_of(questions[i], recall(i));
    request.max_tokens = tokens + 1;
    request.cache_salt = random_hex(16);
    Stream stream = model.engine().generate(std::move(request));
    std::optional<Clock::time_point> begun;
    while (true) {
      const Event event = stream.next();
      if (event.error) {
        throw *event.error;
      }
      if (!begun) {
        begun = Clock::now();
      }
      if (event.finish != Finish::none) {
        break;
      }
    }
    first.push_back(seconds(start, *begun));
    rate.push_back(tokens / seconds(*begun, Clock::now()));
  }
  return {median(first), median(rate)};
}

} // namespace parallm
