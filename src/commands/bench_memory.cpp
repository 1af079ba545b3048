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

const Keeping& keeping_of(const std::string& name) {
  const auto& table = keepings();
  const auto found = std::find_if(table.begin(), table.end(), [&](auto& one) { return one.name == name; });
  check(found != table.end(), "a way of keeping that is in the table");
  return *found;
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
    places_[document.id] = text_.size();
    text_ += *document.text + "\n";
  }
  text_ids_ = model.tokenizer().encode(text_, false);
  bare_ = questions({}, true);
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

bool MemoryBench::fits_prompt(const Asking& asking) const {
  return asking.most > 0 || text_tokens() + room <= model_.info().max_context;
}

void MemoryBench::keep(const std::string& keeping) {
  if (kept_.contains(keeping)) {
    return;
  }
  const Keeping& way = keeping_of(keeping);
  AddDocuments add{.space = keeping, .documents = documents_, .pack = way.pack};
  if (way.one_text) {
    add.documents.clear();
    add.documents.push_back({.id = "text", .text = text_, .ids = {}});
  }
  add.how.header = way.header;
  kept_[keeping] = memories_->add(std::move(add));
}

MemoryView MemoryBench::view(const Asking& asking, size_t question, bool cited) {
  keep(asking.keeping);
  RecallDocuments wanted{.spaces = {asking.keeping}, .ids = {}, .most = asking.most};
  if (asking.most > 0) {
    wanted.prompt = bare_[question].prompt;
  }
  wanted.cited = cited;
  return memories_->recall(wanted, asking.how);
}

RecallOf MemoryBench::recall_of(const Asking& asking, std::vector<MemoryView>* views) {
  if (asking.with != Asking::With::memories) {
    return [](size_t) { return Recall{}; };
  }
  keep(asking.keeping);
  return [this, asking, views](size_t i) {
    MemoryView found = view(asking, i, views != nullptr);
    if (!views) {
      return found.recall;
    }
    views->push_back(std::move(found)); // asked for one after another
    return views->back().recall;
  };
}

std::vector<Question> MemoryBench::asked(const Asking& asking) {
  if (asking.with != Asking::With::prompt) {
    return bare_;
  }
  if (asking.most == 0) {
    return questions(model_.tokenizer().encode(text_, true), false);
  }
  std::map<std::string, std::string> texts;
  for (const NewDocument& document : documents_) {
    texts[document.id] = *document.text;
  }
  std::vector<Question> out;
  for (size_t i = 0; i < facts_.size(); ++i) {
    std::string before;
    for (const RecalledDocument& document : view(asking, i, false).documents) {
      before += texts.at(document.id) + "\n";
    }
    out.push_back(make_question(model_.tokenizer(), before + facts_[i].question, facts_[i].answer, true));
  }
  return out;
}

bool MemoryBench::is_cited(const Asking& asking, size_t question, const MemoryView& view, const AnswerUse& use) const {
  const bool one_text = keeping_of(asking.keeping).one_text;
  const Citations cited = cite(view, use, !one_text, 1);
  if (cited.list.empty()) {
    return false;
  }
  const Citation& first = cited.list.front();
  const std::string id = name("fact", question);
  if (!one_text) {
    return first.id == id;
  }
  const size_t begin = places_.at(id), middle = (first.place.begin + first.place.end) / 2; // the texts are ASCII
  return middle >= begin && middle < begin + facts_[question].statement.size();
}

Score MemoryBench::score(const Asking& asking, bool cited, const std::function<void()>& progress) {
  cited = cited && asking.with == Asking::With::memories;
  std::vector<MemoryView> views;
  const auto judged = judge(model_, asked(asking), recall_of(asking, cited ? &views : nullptr), 1, progress);
  const auto part = 1 / static_cast<double>(judged.size());
  Score out;
  double right = 0;
  for (size_t i = 0; i < judged.size(); ++i) {
    out.exact += judged[i].exact * part;
    out.logprob += judged[i].logprob * part;
    right += (cited && is_cited(asking, i, views[i], judged[i].use)) * part;
  }
  if (cited) {
    out.cited = right;
  }
  return out;
}

Speed MemoryBench::speed(const Asking& asking, size_t count, int tokens) {
  return measure(model_, asked(asking), recall_of(asking), count, tokens);
}

size_t MemoryBench::bytes(const Asking& asking) {
  if (asking.with == Asking::With::prompt && asking.most == 0) {
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

MemoryBench::Exactness MemoryBench::exactness() {
  const int tokens = text_tokens();
  memories_->add_memories("whole", "text", text_ids_, {.bos = false, .max_length = tokens});
  const int top = 20;
  const auto judged = [&](const std::vector<int32_t>& before, const Recall& recall) {
    return judge(
        model_, questions(before, false), [&](size_t) { return recall; }, top);
  };
  const auto read = judged(text_ids_, {});
  Exactness out;
  out.difference =
      greatest_difference(judged({}, memories_->recall("whole", {}, {.top_k = all, .contiguous = true})), read);
  if (2 * tokens + room <= model_.info().max_context) {
    // No memories are used, only room is left for them.
    const Recall later = memories_->recall("whole", {}, {.top_k = 0, .contiguous = true});
    out.rounding = greatest_difference(judged(text_ids_, later), read);
  }
  return out;
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
