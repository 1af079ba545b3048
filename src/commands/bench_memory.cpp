#include "commands/bench_memory.h"

#include <algorithm>
#include <chrono>
#include <random>

namespace parallm {

namespace {

constexpr int all = 1 << 20; // top_k: no text has more
constexpr int room = 64; // tokens of a question and its answer, at most

std::string name(const char* kind, size_t number) {
  return fmt::format("{}-{:05}", kind, number);
}

void append(std::vector<int32_t>& to, const std::vector<int32_t>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

} // namespace

const std::vector<Keeping>& keepings() {
  static const std::vector<Keeping> table = {
      {"text", "one document that holds all, a line each", true, "", false},
      {"documents", "a document each", false, "", false},
      {"header",
       "a document each, read behind a header that isn't kept",
       false,
       "Some things that are known:\n",
       false},
      {"packed", "a document each, read one behind another in packs", false, "", true},
  };
  return table;
}

MemoryBench::MemoryBench(LanguageModel& model, const std::string& folder, int facts, int distractors, uint64_t seed)
    : model_(model),
      memories_(open_memories(model, {.store = "files:" + folder})),
      facts_(make_facts(facts, seed)),
      seed_(seed) {
  const auto add = [&](std::string id, const std::string& text) {
    documents_.push_back({.id = std::move(id), .text = text, .ids = {}});
  };
  for (size_t i = 0; i < facts_.size(); ++i) {
    add(name("fact", i), facts_[i].statement);
  }
  const auto noise = make_noise(distractors, seed);
  for (size_t i = 0; i < noise.size(); ++i) {
    add(name("noise", i), noise[i]);
  }
  std::mt19937_64 random(seed);
  for (size_t i = documents_.size(); i > 1; --i) {
    std::swap(documents_[i - 1], documents_[random() % i]);
  }
  for (const NewDocument& document : documents_) {
    text_ += *document.text + "\n";
  }
  text_ids_ = model.tokenizer().encode(text_, false);
  bare_ = questions({}, true);
  prompted_ = questions(model.tokenizer().encode(text_, true), false);
}

std::vector<Question> MemoryBench::questions(const std::vector<int32_t>& before, bool special) const {
  std::vector<Question> out;
  for (const Fact& fact : facts_) {
    Question question = make_question(model_.tokenizer(), fact.question, fact.answer, special);
    question.prompt.insert(question.prompt.begin(), before.begin(), before.end());
    out.push_back(std::move(question));
  }
  return out;
}

bool MemoryBench::fits_prompt() const {
  return text_tokens() + room <= model_.info().max_context;
}

void MemoryBench::keep(const std::string& keeping) {
  if (kept_.contains(keeping)) {
    return;
  }
  const auto& table = keepings();
  const auto found = std::find_if(table.begin(), table.end(), [&](auto& one) { return one.name == keeping; });
  check(found != table.end(), "a way of keeping that is in the table");
  AddDocuments add{.space = keeping, .documents = documents_, .pack = found->pack};
  if (found->one_text) {
    add.documents.clear();
    add.documents.push_back({.id = "text", .text = text_, .ids = {}});
  }
  add.how.header = found->header;
  kept_[keeping] = memories_->add(std::move(add));
}

RecallOf MemoryBench::recall_of(const Asking& asking) {
  if (asking.with != Asking::With::memories) {
    return [](size_t) { return Recall{}; };
  }
  keep(asking.keeping);
  return [this, asking](size_t i) {
    RecallDocuments wanted{.spaces = {asking.keeping}, .ids = {}, .most = asking.most};
    if (asking.most > 0) {
      wanted.prompt = bare_[i].prompt;
    }
    return memories_->recall(wanted, asking.how).recall;
  };
}

const std::vector<Question>& MemoryBench::asked(const Asking& asking) const {
  return asking.with == Asking::With::prompt ? prompted_ : bare_;
}

Score MemoryBench::score(const Asking& asking, const std::function<void()>& progress) {
  Score out;
  const auto judged = judge(model_, asked(asking), recall_of(asking), 1, progress);
  for (const Judged& one : judged) {
    out.exact += one.exact / static_cast<double>(judged.size());
    out.logprob += one.logprob / static_cast<double>(judged.size());
  }
  return out;
}

Speed MemoryBench::speed(const Asking& asking, size_t count, int tokens) {
  return measure(model_, asked(asking), recall_of(asking), count, tokens);
}

size_t MemoryBench::bytes(const Asking& asking) {
  if (asking.with == Asking::With::prompt) {
    return text_ids_.size() * (model_.info().kv_bytes / std::max(1, model_.info().kv_tokens));
  }
  if (asking.with == Asking::With::nothing) {
    return 0;
  }
  keep(asking.keeping);
  std::vector<size_t> sizes;
  for (const AddedDocument& added : kept_.at(asking.keeping)) {
    sizes.push_back(added.bytes);
  }
  std::sort(sizes.rbegin(), sizes.rend());
  sizes.resize(asking.most > 0 ? std::min<size_t>(sizes.size(), asking.most) : sizes.size());
  size_t sum = 0;
  for (const size_t size : sizes) {
    sum += size;
  }
  return sum;
}

double MemoryBench::difference_to_prompt() {
  const int tokens = text_tokens();
  memories_->add_memories("whole", "text", text_ids_, {.bos = false, .max_length = tokens});
  const Recall recall = memories_->recall("whole", {}, {.top_k = all, .contiguous = true});
  const int top = 20;
  const auto remembered = judge(
      model_, questions({}, false), [&](size_t) { return recall; }, top);
  const auto read = judge(
      model_, questions(text_ids_, false), [](size_t) { return Recall{}; }, top);
  return greatest_difference(remembered, read);
}

MemoryBench::Length MemoryBench::length(int tokens, int top_k, size_t count, int output) {
  std::vector<int32_t> ids = text_ids_;
  for (int round = 1; static_cast<int>(ids.size()) < tokens; ++round) {
    for (const std::string& text : make_noise(100, seed_ + round)) {
      append(ids, model_.tokenizer().encode(text + "\n", false));
    }
  }
  ids.resize(tokens);
  Length out{.tokens = tokens};
  const auto start = std::chrono::steady_clock::now();
  const std::string space = fmt::format("length-{}", tokens);
  memories_->add_memories(space, "text", ids, {.bos = true});
  out.reading = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto with = [&](bool contiguous) {
    return measure(
        model_,
        bare_,
        [&](size_t) { return memories_->recall(space, {}, {.top_k = top_k, .contiguous = contiguous}); },
        count,
        output);
  };
  out.zero = with(false);
  out.contiguous = with(true);
  const auto prompts = questions(ids, false);
  out.prompt = measure(
      model_, prompts, [](size_t) { return Recall{}; }, std::min<size_t>(count, 3), output);
  return out;
}

} // namespace parallm
