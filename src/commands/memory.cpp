// `mlx_parallm memory`: the documents of a store. Only reading new ones, and comparing with a text, need a model.
#include "base/file.h"
#include "base/log.h"
#include "commands/commands.h"
#include "commands/flags.h"
#include "commands/progress.h"
#include "library/memories.h"
#include "text/utf8.h"

#include <condition_variable>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <sstream>

namespace parallm {

namespace {

constexpr size_t most_listed = 1000; // documents that are asked of the store at once
constexpr size_t excerpt_bytes = 100;

struct MemoryFlags {
  std::string store;
  std::string space = "default";
  std::string filter;
  bool json = false;

  std::string model_path;
  LoadOptions load = {.max_rows = 1, .extended_mind = true};
  std::vector<std::string> files; // of add
  std::vector<std::string> ids; // of add one, of rm several
  std::vector<std::string> metadata;
  ReadOptions how;
  bool pack = false, keep = false, quiet = false, all = false;
  std::vector<std::string> spaces; // of query
  std::string text;
  int top_k = 10;
};

Filter filter_of(const MemoryFlags& flags) {
  return flags.filter.empty() ? Filter{} : parse_filter(parse_json(flags.filter, "--filter"), "--filter");
}

std::unique_ptr<Store> store_of(const MemoryFlags& flags) {
  return open_store(flags.store.empty() ? default_memory_store() : flags.store);
}

/** Text that stands after "=" in --metadata: a number, true, false or a string in quotes is what JSON says; all else is
 * a string as it stands. */
json::value metadata_value(const std::string& text) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  return !error && (value.is_number() || value.is_bool() || value.is_string()) ? value : json::value(text);
}

json::object metadata_of(const MemoryFlags& flags) {
  json::object out;
  for (const std::string& one : flags.metadata) {
    const size_t equals = one.find('=');
    if (equals == std::string::npos || equals == 0) {
      fail(Kind::invalid, "[memory] --metadata takes key=value; got {}", one);
    }
    out[one.substr(0, equals)] = metadata_value(one.substr(equals + 1));
  }
  return out;
}

NewDocument read_document(const std::string& file, const MemoryFlags& flags) {
  NewDocument out;
  const bool standard_input = file == "-";
  if (standard_input) {
    std::ostringstream bytes;
    bytes << std::cin.rdbuf();
    out.text = std::move(bytes).str();
  } else {
    out.text = read_file(file);
    out.id = std::filesystem::path(file).filename().string();
  }
  const std::string name = standard_input ? "standard input" : file;
  if (out.text->empty()) {
    fail(Kind::invalid, "[memory] {} is empty", name);
  }
  if (valid_utf8(*out.text) != *out.text) {
    fail(Kind::invalid, "[memory] {} is no UTF-8 text", name);
  }
  if (!flags.ids.empty()) {
    out.id = flags.ids.front();
  }
  out.metadata = metadata_of(flags);
  return out;
}

AddDocuments documents_of(const MemoryFlags& flags) {
  if (!flags.ids.empty() && flags.files.size() > 1) {
    fail(Kind::invalid, "[memory] --id names one document; got {} files", flags.files.size());
  }
  AddDocuments add{.space = flags.space, .documents = {}, .how = flags.how, .pack = flags.pack};
  add.if_exists = flags.keep ? IfExists::fail : IfExists::replace;
  for (const std::string& file : flags.files) {
    add.documents.push_back(read_document(file, flags));
  }
  return add;
}

/** Shows a job until it ends: a line of standard output for each document that is kept, and on standard error a bar, or
 * in a log a line every tenth. */
class ReadingJob {
 public:
  ReadingJob(MemoryManager& memories, const MemoryFlags& flags)
      : memories_(memories), flags_(flags), bar_(stderr, !flags.quiet) {}

  void run(AddDocuments add) {
    const std::string id = memories_.submit(std::move(add), [this](const JobState&) {
      std::lock_guard lock(mutex_);
      ended_ = true;
      end_.notify_one();
    });
    while (true) {
      std::unique_lock lock(mutex_);
      const bool ended = end_.wait_for(lock, std::chrono::milliseconds(100), [&] { return ended_; });
      lock.unlock();
      const auto job = memories_.jobs().find(id);
      check(job.has_value(), "a job that has just ended is known");
      show(*job, ended);
      if (ended) {
        if (job->error) {
          throw *job->error;
        }
        return;
      }
    }
  }

 private:
  void show(const JobState& job, bool ended) {
    for (; said_ < job.documents.size(); ++said_) {
      bar_.clear();
      say(job.documents[said_]);
    }
    const double part =
        static_cast<double>(job.tokens_done) / static_cast<double>(std::max<int64_t>(1, job.tokens_total));
    const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const std::string tail = fmt::format(
        "{}/{} documents, {}/{} tokens, {:.0f} tokens/s",
        job.documents.size(),
        job.documents_total,
        job.tokens_done,
        job.tokens_total,
        static_cast<double>(job.tokens_done) / std::max(seconds, 1e-9));
    if (bar_.shown() && !ended) {
      bar_.draw(part, tail);
    }
    const int tenth = static_cast<int>(part * 10);
    if (ended) {
      bar_.clear();
    }
    if (!flags_.quiet && (ended || (!bar_.shown() && tenth > tenths_))) {
      tenths_ = tenth;
      fmt::print(stderr, "{}\n", tail);
    }
  }

  void say(const AddedDocument& added) const {
    if (flags_.json) {
      const json::object line{
          {"id", added.id}, {"namespace", flags_.space}, {"n_tokens", added.tokens}, {"bytes", added.bytes}};
      fmt::print("{}\n", json_text(line));
    } else {
      fmt::print("{}: {} memories, {:.1f} MB\n", added.id, added.tokens, static_cast<double>(added.bytes) / 1e6);
    }
    std::fflush(stdout);
  }

  MemoryManager& memories_;
  const MemoryFlags& flags_;
  Bar bar_;
  size_t said_ = 0; // documents
  int tenths_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::condition_variable end_;
  bool ended_ = false;
};

/** A loaded model with the store. */
struct Loaded {
  LanguageModel model;
  std::unique_ptr<MemoryManager> memories;

  explicit Loaded(const MemoryFlags& flags)
      : model(flags.model_path, flags.load), memories(open_memories(model, {.store = flags.store})) {}
};

int add(const MemoryFlags& flags) {
  AddDocuments documents = documents_of(flags); // what is wrong with them is said before a model is loaded
  Loaded loaded(flags);
  ReadingJob(*loaded.memories, flags).run(std::move(documents));
  return 0;
}

/** What the namespace must have had once: a name that nothing ever had is a mistake. */
void check_known(Store& store, const std::string& space) {
  if (store.version(space) == 0) {
    fail(Kind::not_found, "[memory] there is no namespace of this name in the store; got {}", space);
  }
}

json::object document_json(const Document& document) {
  return {
      {"id", document.id},
      {"namespace", document.space},
      {"created", document.created},
      {"n_tokens", document.tokens},
      {"metadata", document.metadata}};
}

std::string time_text(int64_t seconds) {
  const std::time_t time = seconds;
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&time));
  return text;
}

int list(const MemoryFlags& flags) {
  const Filter filter = filter_of(flags);
  const auto store = store_of(flags);
  check_known(*store, flags.space);
  Page page;
  do {
    const std::string after = page.documents.empty() ? "" : page.documents.back().id;
    page = store->list(flags.space, after, most_listed, filter);
    for (const Document& document : page.documents) {
      if (flags.json) {
        fmt::print("{}\n", json_text(document_json(document)));
      } else {
        fmt::print(
            "{:<32} {:>8} tokens  {}  {}\n",
            document.id,
            document.tokens,
            time_text(document.created),
            document.metadata.empty() ? "" : json_text(document.metadata));
      }
    }
  } while (page.more);
  return 0;
}

int namespaces(const MemoryFlags& flags) {
  for (const Namespace& space : store_of(flags)->namespaces()) {
    if (flags.json) {
      fmt::print(
          "{}\n",
          json_text(json::object{{"id", space.name}, {"documents", space.documents}, {"n_tokens", space.tokens}}));
    } else {
      fmt::print("{:<32} {:>8} documents {:>10} tokens\n", space.name, space.documents, space.tokens);
    }
  }
  return 0;
}

int remove(const MemoryFlags& flags) {
  const Filter filter = filter_of(flags);
  if (flags.ids.empty() && !flags.all && filter.empty()) {
    fail(Kind::invalid, "[memory] rm takes ids, --filter, or --all for the whole namespace");
  }
  const auto store = store_of(flags);
  check_known(*store, flags.space);
  size_t erased = 0, missing = 0;
  if (flags.ids.empty()) {
    erased = store->erase(flags.space, {}, filter);
  }
  for (const std::string& id : flags.ids) {
    if (store->erase(flags.space, {id}, filter) == 0) {
      ++missing;
      fmt::print(stderr, "error: [memory] no document of this id in namespace {}; got {}\n", flags.space, id);
    } else {
      ++erased;
    }
  }
  fmt::print(stderr, "{} removed\n", erased);
  return missing == 0 ? 0 : 1;
}

/** The beginning of a text, on one line. */
std::string excerpt(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    if (!space) {
      out += c;
    } else if (!out.empty() && out.back() != ' ') {
      out += ' ';
    }
    if (out.size() > excerpt_bytes + 4) { // all of the last character
      break;
    }
  }
  if (out.size() <= excerpt_bytes) {
    return out;
  }
  size_t end = excerpt_bytes;
  while (end > 0 && (out[end] & 0xC0) == 0x80) {
    --end;
  }
  return out.substr(0, end) + "...";
}

int query(MemoryFlags& flags) {
  const Filter filter = filter_of(flags);
  Loaded loaded(flags);
  if (flags.spaces.empty()) {
    flags.spaces = {flags.space};
  }
  for (const std::string& space : flags.spaces) {
    check_known(loaded.memories->store(), space);
  }
  const auto ids = loaded.model.tokenizer().encode(flags.text, false);
  for (const FoundDocument& found : loaded.memories->query(flags.spaces, filter, ids, flags.top_k)) {
    if (flags.json) {
      json::object line = document_json(found.document);
      line["similarity"] = found.similarity ? json::value(shortest(*found.similarity)) : json::value();
      line["text"] = found.document.text;
      fmt::print("{}\n", json_text(line));
    } else {
      fmt::print(
          "{}  {}  {}\n",
          found.similarity ? fmt::format("{:.4f}", *found.similarity) : "     -",
          found.document.id,
          excerpt(found.document.text));
    }
  }
  return 0;
}

void add_store_flags(CLI::App& app, MemoryFlags& flags) {
  app.add_option("--store", flags.store, "where documents are kept: docs/memory.md has the addresses")
      ->default_str(default_memory_store());
  app.add_flag("--json", flags.json, "a JSON object a line");
}

void add_space_flag(CLI::App& app, MemoryFlags& flags) {
  app.add_option("--namespace", flags.space, "of the documents")->capture_default_str();
}

void add_filter_flag(CLI::App& app, MemoryFlags& flags) {
  app.add_option("--filter", flags.filter, "by metadata, in JSON: {\"year\": {\"gte\": 1990}, \"lang\": \"en\"}");
}

void add_model_flags(CLI::App& app, MemoryFlags& flags) {
  app.add_option("--model-path", flags.model_path, model_path_help)->required();
  app.add_flag("--quiet", flags.quiet, "no progress");
  add_load_flags(app, flags.load);
}

CLI::App* add_verb(CLI::App& app, MemoryFlags& flags) {
  auto* verb = app.add_subcommand("add", "texts that a model reads once and requests attend to");
  add_store_flags(*verb, flags);
  add_space_flag(*verb, flags);
  verb->add_option("files", flags.files, "each a document, whose id is the file's name; - is standard input")
      ->required();
  verb->add_option("--id", flags.ids, "of the one document, instead")->expected(1);
  verb->add_option(
          "--metadata",
          flags.metadata,
          "key=value, of each document (may be given again); a number, true or false is kept as such")
      ->allow_extra_args(false);
  verb->add_option(
      "--header", flags.how.header, "read before each text, and not kept: short texts are understood better");
  verb->add_flag("--pack", flags.pack, "short documents are read one behind another");
  verb->add_option(
          "--stride", flags.how.stride, "new tokens of each window of a long text after the first; default: 512")
      ->check(CLI::Range(1, 1 << 30));
  verb->add_option(
          "--max-length",
          flags.how.max_length,
          "tokens of a window; default: 3072, or the model's context if that is less")
      ->check(CLI::Range(1, 1 << 30));
  verb->add_flag("--no-replace", flags.keep, "a document whose id is there already is an error; it would be replaced");
  add_model_flags(*verb, flags);
  return verb;
}

CLI::App* query_verb(CLI::App& app, MemoryFlags& flags) {
  auto* verb = app.add_subcommand("query", "the documents that are most similar to a text: similarity, id, beginning");
  add_store_flags(*verb, flags);
  verb->add_option("--namespace", flags.spaces, "of the documents (may be given again); default: default")
      ->allow_extra_args(false);
  add_filter_flag(*verb, flags);
  verb->add_option("text", flags.text, "what they are compared with")->required();
  verb->add_option("--top-k", flags.top_k, "documents")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  add_model_flags(*verb, flags);
  return verb;
}

} // namespace

int memory(std::vector<std::string> arguments) {
  MemoryFlags flags;
  CLI::App app(
      "Documents that requests attend to (Extended Mind): what the store of a server holds", "mlx_parallm memory");
  app.require_subcommand(1);
  auto* added = add_verb(app, flags);
  auto* listed = app.add_subcommand("list", "the documents of a namespace");
  auto* removed = app.add_subcommand("rm", "removes documents, at once for every server on the store");
  auto* queried = query_verb(app, flags);
  auto* spaces = app.add_subcommand("namespaces", "all that hold a document");
  for (auto* verb : {listed, removed}) {
    add_space_flag(*verb, flags);
    add_filter_flag(*verb, flags);
  }
  add_store_flags(*listed, flags);
  add_store_flags(*spaces, flags);
  removed->add_option("--store", flags.store, "where documents are kept")->default_str(default_memory_store());
  auto* ids = removed->add_option("ids", flags.ids, "of the documents");
  removed->add_flag("--all", flags.all, "all of the namespace")->excludes(ids);
  try {
    parse(app, std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  flags.load.on_fetch = FetchBar(flags.model_path, stderr, !flags.quiet);
  const bool reads = added->parsed() || queried->parsed();
  set_log(reads && !flags.quiet ? "info" : "warning");
  return added->parsed()  ? add(flags)
      : listed->parsed()  ? list(flags)
      : removed->parsed() ? remove(flags)
      : queried->parsed() ? query(flags)
                          : namespaces(flags);
}

} // namespace parallm
