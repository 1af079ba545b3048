#include "commands/bench_wikiqa.h"

#include "base/file.h"
#include "commands/bench_ask.h"

#include <algorithm>
#include <map>

namespace parallm {

namespace {

constexpr int output_tokens = 30;

// One example before each question, as the paper has one.
constexpr const char* example =
    "Answer the question with what the document says. The answer is a word, a number or a short phrase.\n"
    "Document: the lighthouse of orlen point was built in 1871 by the engineer tomas weir. it is 31 metres high, and its light "
    "is seen 20 miles away.\n"
    "Question: who built the lighthouse of Orlen Point?\n"
    "Answer: tomas weir\n\n";

std::string lower(std::string text) {
  std::transform(
      text.begin(), text.end(), text.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
  return text;
}

bool is_right(const std::string& text, const WikiQuestion& question) {
  const std::string said = lower(text);
  return std::any_of(question.answers.begin(), question.answers.end(), [&](const std::string& answer) {
    return said.find(lower(answer)) != std::string::npos;
  });
}

std::string string_of(const json::object& entry, const char* key, const std::string& where) {
  const json::value* value = entry.if_contains(key);
  if (!value || !value->is_string()) {
    fail(Kind::invalid, "[wikiqa] {} needs a string \"{}\"; got {}", where, key, value ? json_excerpt(*value) : "none");
  }
  return std::string(value->get_string());
}

std::vector<std::string> answers_of(const json::object& entry, const std::string& where) {
  const json::value* value = entry.if_contains("answer");
  if (!value || !value->is_array()) {
    return {string_of(entry, "answer", where)};
  }
  std::vector<std::string> out;
  for (const json::value& one : value->get_array()) {
    if (!one.is_string()) {
      fail(Kind::invalid, "[wikiqa] {}: answers are strings; got {}", where, json_excerpt(one));
    }
    out.emplace_back(one.get_string());
  }
  if (out.empty()) {
    fail(Kind::invalid, "[wikiqa] {} has no answer", where);
  }
  return out;
}

std::string prompt_of(const WikiQuestion& question, bool with_document) {
  return fmt::format(
      "{}\n{}\n{}{}\nAnswer:",
      example,
      question.prompt,
      with_document ? question.context + "\n" : "",
      question.question);
}

struct Row {
  std::string name;
  bool document = false; // in the prompt
  std::optional<RecallHow> how;
  std::map<std::string, int> right; // by split
  int too_long = 0; // questions that were not asked
};

/** Asks some questions in one way. */
void ask(LanguageModel& model, MemoryManager& memories, std::span<const WikiQuestion> questions, Row& row) {
  std::vector<Request> requests;
  std::vector<size_t> asked;
  for (size_t i = 0; i < questions.size(); ++i) {
    const WikiQuestion& question = questions[i];
    Request request;
    request.prompt = model.tokenizer().encode(prompt_of(question, row.document), true);
    request.max_tokens = output_tokens;
    request.sampling.temperature = 0;
    if (row.how) {
      RecallDocuments wanted;
      wanted.inlined.push_back({.id = "document", .text = question.context, .ids = {}});
      request.recall = memories.recall(wanted, *row.how).recall;
    }
    const int tokens = static_cast<int>(request.prompt.size()) + request.recall.before + output_tokens;
    if (tokens > model.info().max_context) {
      ++row.too_long;
    } else {
      requests.push_back(std::move(request));
      asked.push_back(i);
    }
  }
  const auto texts = generate_all(model, std::move(requests));
  for (size_t i = 0; i < asked.size(); ++i) {
    const WikiQuestion& question = questions[asked[i]];
    row.right[question.split] += is_right(texts[i], question);
  }
}

} // namespace

std::vector<WikiQuestion> read_wikiqa(const std::string& path, int limit) {
  const json::value all = parse_json(read_file(path), path);
  if (!all.is_array()) {
    fail(Kind::invalid, "[wikiqa] {} must hold a JSON list; got {}", path, json_kind(all));
  }
  std::vector<WikiQuestion> out;
  std::map<std::string, int> counts;
  size_t number = 0;
  for (const json::value& value : all.get_array()) {
    const std::string where = fmt::format("{}, entry {}", path, number++);
    if (!value.is_object()) {
      fail(Kind::invalid, "[wikiqa] {} must be an object; got {}", where, json_kind(value));
    }
    const json::object& entry = value.get_object();
    WikiQuestion question{
        string_of(entry, "split", where),
        string_of(entry, "prompt", where),
        string_of(entry, "question", where),
        string_of(entry, "context", where),
        answers_of(entry, where)};
    if (limit == 0 || counts[question.split]++ < limit) {
      out.push_back(std::move(question));
    }
  }
  if (out.empty()) {
    fail(Kind::invalid, "[wikiqa] {} has no question", path);
  }
  return out;
}

void report_wikiqa(
    LanguageModel& model,
    MemoryManager& memories,
    const std::vector<WikiQuestion>& questions,
    const std::vector<std::pair<std::string, RecallHow>>& ways,
    Report& report,
    const std::function<void(size_t done, size_t total)>& progress) {
  std::vector<Row> rows{{.name = "no document"}, {.name = "document in the prompt", .document = true}};
  for (const auto& [name, how] : ways) {
    rows.push_back({.name = name, .how = how});
  }
  std::vector<std::string> splits;
  std::map<std::string, int> counts;
  for (const WikiQuestion& question : questions) {
    if (counts[question.split]++ == 0) {
      splits.push_back(question.split);
    }
  }
  // Some questions in all ways, then the next ones: their documents are read once and need not stay.
  const size_t together = model.engine().options().max_rows;
  for (size_t begin = 0; begin < questions.size(); begin += together) {
    const size_t count = std::min(together, questions.size() - begin);
    for (size_t r = 0; r < rows.size(); ++r) {
      progress(begin * rows.size() + r * count, questions.size() * rows.size());
      ask(model, memories, std::span(questions).subspan(begin, count), rows[r]);
    }
  }
  std::vector<std::string> names{""};
  for (const std::string& split : splits) {
    names.push_back(fmt::format("{} ({})", split, counts[split]));
  }
  names.insert(names.end(), {"mean", "too long"});
  report.columns(names);
  for (Row& row : rows) {
    std::vector<std::string> cells{row.name};
    double sum = 0;
    for (const std::string& split : splits) {
      const double percent = 100.0 * row.right[split] / counts[split];
      sum += percent / static_cast<double>(splits.size());
      cells.push_back(fmt::format("{:.2f}", percent));
    }
    report.say("| {} | {:.2f} | {} |", fmt::join(cells, " | "), sum, row.too_long);
  }
}

} // namespace parallm
