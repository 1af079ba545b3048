// /v1/memories and what is under it: documents that the model reads once and
// that requests name in `memory` (memory_fields.h). The same routes stand under
// /v1/models/<id>/memories.
#include "api/answers.h"
#include "api/choices.h"
#include "api/memory_fields.h"
#include "api/routes.h"
#include "api/schema.h"
#include "text/utf8.h"

#include <algorithm>

namespace parallm {

namespace {

constexpr int most_listed = 1000, most_found = 100;
constexpr size_t most_documents = 10'000; // of one request

// Paths that would hide a document of this id.
bool is_reserved(std::string_view id) {
  return id == "namespaces" || id == "query" || id == "jobs" || id.starts_with("jobs/");
}

MemoryManager& memories_of(Service& service) {
  const auto& memories = service.model().memories;
  if (!memories) {
    fail(Kind::invalid, "[memory] the server was started without --use-extended-mind");
  }
  return *memories;
}

void check_utf8(const std::string& text, const std::string& field) {
  if (valid_utf8(text) != text) {
    fail_field(field, "[{}] must be UTF-8, percent-encoded", field);
  }
}

/** A parameter of the query, or what stands for it. */
std::string parameter(const HttpRequest& request, const std::string& name, const std::string& otherwise = "") {
  const auto found = request.query.find(name);
  if (found == request.query.end()) {
    return otherwise;
  }
  check_utf8(found->second, name);
  return found->second;
}

/** A parameter that is JSON, where it is there. */
std::optional<json::value> json_parameter(const HttpRequest& request, const std::string& name) {
  if (!request.query.contains(name)) {
    return std::nullopt;
  }
  boost::system::error_code error;
  json::value value = json::parse(parameter(request, name), error);
  if (error) {
    fail_field(name, "[{}] is not valid JSON: {}", name, error.message());
  }
  return value;
}

/** The document's id in the path. */
const std::string& path_id(const HttpRequest& request) {
  check_utf8(request.rest, "id");
  return request.rest;
}

/** Checks the query's model, where it names one, and that every parameter is known. */
void check_query(const HttpRequest& request, const Service& service, std::initializer_list<std::string_view> known) {
  for (const auto& [name, value] : request.query) {
    if (name == "model") {
      check_model(value, service);
    } else if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail_field(name, "[{}] is not a parameter of this path", name);
    }
  }
}

Filter filter_of(const HttpRequest& request) {
  const auto filter = json_parameter(request, "filter");
  return filter ? parse_filter(*filter) : Filter{};
}

json::object document_json(const Document& document) {
  return {
      {"id", document.id},
      {"object", "memory"},
      {"namespace", document.space},
      {"created", document.created},
      {"n_tokens", document.tokens},
      {"metadata", document.metadata}};
}

json::object added_json(const AddedDocument& added, const std::string& space) {
  return {
      {"id", added.id},
      {"object", "memory"},
      {"namespace", space},
      {"n_tokens", added.tokens},
      {"bytes", added.bytes},
      {"status", "ready"}};
}

json::array added_json(const JobState& job) {
  json::array out;
  for (const AddedDocument& added : job.documents) {
    out.push_back(added_json(added, job.space));
  }
  return out;
}

json::object job_json(const JobState& job) {
  json::object out{
      {"id", job.id},
      {"object", "memory.job"},
      {"namespace", job.space},
      {"status", status_name(job.status)},
      {"created", job.created},
      {"tokens", {{"done", job.tokens_done}, {"total", job.tokens_total}}},
      {"documents", {{"done", job.documents_done}, {"total", job.documents_total}}},
      {"error", nullptr}};
  if (job.error && job.status == JobState::Status::failed) {
    out["error"] = {{"message", job.error->what()}, {"param", job.error->param}};
  }
  return out;
}

/** With its documents. */
json::object whole_job_json(const JobState& job) {
  json::object out = job_json(job);
  out["data"] = added_json(job);
  return out;
}

[[noreturn]] void no_document(const std::string& space, const std::string& id) {
  Error error(Kind::not_found, "id", fmt::format("[memory] no document of this id in namespace {}; got {}", space, id));
  error.code = "memory_not_found";
  throw error;
}

/** Waits for a job; who leaves does not end it. */
class LiveJob : public Live {
 public:
  LiveJob(MemoryManager& memories, AddDocuments add) {
    memories.submit(std::move(add), [shared = shared_](const JobState& job) { shared->end(job); });
  }

  void on_ready(std::function<void()> wake) override {
    std::unique_lock lock(shared_->mutex);
    if (shared_->ended) {
      lock.unlock();
      wake();
    } else {
      shared_->wake = std::move(wake);
    }
  }

  Progress advance() override {
    std::optional<JobState> job;
    {
      std::lock_guard lock(shared_->mutex);
      job = std::move(shared_->ended);
    }
    if (!job) {
      return {};
    }
    if (job->error) {
      throw *job->error;
    }
    const json::object usage{{"prompt_tokens", job->tokens_done}, {"total_tokens", job->tokens_done}};
    return {json_text(json::object{{"object", "list"}, {"data", added_json(*job)}, {"usage", usage}}), true};
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::optional<JobState> ended;
    std::function<void()> wake;
    void end(const JobState& job) {
      std::function<void()> call;
      {
        std::lock_guard lock(mutex);
        ended = job;
        call = std::move(wake);
      }
      if (call) {
        call();
      }
    }
  };
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

AddDocuments read_documents(Fields& fields, const ServedModel& served) {
  AddDocuments add;
  add.space = fields.string("namespace").value_or(usual_space);
  const json::array* documents = fields.array("documents");
  if (!documents) {
    fail_field("documents", "[documents] is required; got none");
  }
  if (documents->size() > most_documents) {
    throw Error(
        Kind::too_large,
        "documents",
        fmt::format("[documents] one request may have {}; got {}", most_documents, documents->size()));
  }
  for (size_t i = 0; i < documents->size(); ++i) {
    add.documents.push_back(read_document((*documents)[i], fmt::format("documents[{}]", i), served));
    if (is_reserved(add.documents.back().id)) {
      fail_field(
          fmt::format("documents[{}].id", i), "[memory] this id is a path of the API; got {}", add.documents.back().id);
    }
  }
  add.how.header = fields.string("header").value_or("");
  add.how.bos = fields.boolean("add_bos").value_or(true);
  add.how.stride = static_cast<int>(fields.integer("stride", 1, 1 << 30).value_or(0));
  add.how.max_length = static_cast<int>(fields.integer("max_length", 1, 1 << 30).value_or(0));
  add.pack = fields.boolean("pack").value_or(false);
  const std::string exists = fields.string("if_exists").value_or("replace");
  if (exists != "replace" && exists != "error") {
    fail_field("if_exists", "[if_exists] must be replace or error; got {}", exists);
  }
  add.if_exists = exists == "error" ? IfExists::fail : IfExists::replace;
  return add;
}

/** A body's model, or that of the path. */
void read_or_path_model(Fields& fields, const HttpRequest& request, const Service& service) {
  if (request.query.contains("model")) {
    const auto given = fields.string("model");
    check_model(given.value_or(parameter(request, "model")), service);
  } else {
    read_model(fields, service);
  }
}

std::string required_space(const HttpRequest& request) {
  const std::string space = parameter(request, "namespace");
  if (space.empty()) {
    fail_field("namespace", "[namespace] is required; got none");
  }
  return space;
}

} // namespace

Reply add_memories(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  json::object body = read_body(request);
  Fields fields(body);
  read_or_path_model(fields, request, service);
  AddDocuments add = read_documents(fields, service.model());
  const bool background = fields.boolean("background").value_or(false);
  Headers headers = ignored_fields(fields, service);
  if (background) {
    JobState job; // in place of one that has ended and is forgotten by now
    job.id = memories.submit(std::move(add));
    return Answer{
        .status = 202,
        .body = json_text(whole_job_json(memories.jobs().find(job.id).value_or(job))),
        .headers = headers};
  }
  auto live = std::make_unique<LiveJob>(memories, std::move(add));
  live->headers = std::move(headers);
  return live;
}

Reply list_memories(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {"namespace", "limit", "after", "filter"});
  const auto limit = json_parameter(request, "limit");
  const int64_t count = limit ? read_integer(*limit, "limit", 1, most_listed) : 100;
  const Page page = memories.store().list(
      parameter(request, "namespace", usual_space), parameter(request, "after"), count, filter_of(request));
  json::array data;
  for (const Document& document : page.documents) {
    data.push_back(document_json(document));
  }
  json::object out{{"object", "list"}, {"has_more", page.more}};
  out["first_id"] = page.documents.empty() ? json::value() : json::value(page.documents.front().id);
  out["last_id"] = page.documents.empty() ? json::value() : json::value(page.documents.back().id);
  out["data"] = std::move(data);
  return Answer{.body = json_text(out)};
}

Reply show_memory(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {"namespace", "include"});
  bool text = false, ids = false;
  const std::string include = parameter(request, "include");
  for (std::string_view rest = include; !rest.empty();) {
    const std::string_view one = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    text = text || one == "text";
    ids = ids || one == "tokens";
    if (one != "text" && one != "tokens") {
      fail_field("include", "[include] may have text and tokens; got {}", one);
    }
  }
  const std::string space = parameter(request, "namespace", usual_space);
  const std::string& id = path_id(request);
  const auto document = memories.store().get(space, id);
  if (!document) {
    no_document(space, id);
  }
  json::object out = document_json(*document);
  out["header"] = document->header;
  out["stale"] = document->fingerprint != memories.fingerprint();
  if (text) {
    out["text"] = document->text;
  }
  if (ids) {
    out["token_ids"] = ids_json(document->token_ids);
  }
  return Answer{.body = json_text(out)};
}

Reply delete_memory(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {"namespace"});
  const std::string space = parameter(request, "namespace", usual_space);
  const std::string& id = path_id(request);
  if (memories.store().erase(space, {id}) == 0) {
    no_document(space, id);
  }
  return Answer{.body = json_text(json::object{{"id", id}, {"object", "memory"}, {"deleted", true}})};
}

Reply delete_memories(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {"namespace", "filter"});
  const std::string space = required_space(request);
  const size_t count = memories.store().erase(space, {}, filter_of(request));
  return Answer{.body = json_text(json::object{{"object", "list"}, {"namespace", space}, {"deleted", count}})};
}

Reply list_memory_namespaces(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {});
  json::array data;
  for (const Namespace& space : memories.store().namespaces()) {
    data.push_back(json::object{
        {"id", space.name},
        {"object", "memory.namespace"},
        {"documents", space.documents},
        {"n_tokens", space.tokens},
        {"version", space.version}});
  }
  return Answer{.body = json_text(json::object{{"object", "list"}, {"data", std::move(data)}})};
}

Reply query_memories(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  json::object body = read_body(request);
  Fields fields(body);
  read_or_path_model(fields, request, service);
  const auto spaces = read_spaces(fields);
  if (spaces.empty()) {
    fail_field("namespaces", "[namespaces] is required; got none");
  }
  const auto input = fields.string("input");
  if (!input) {
    fail_field("input", "[input] is required; got none");
  }
  const json::value* filter = fields.any("filter");
  const auto top = static_cast<int>(fields.integer("top_k", 1, most_found).value_or(10));
  Headers headers = ignored_fields(fields, service);
  const auto found = memories.query(
      spaces, filter ? parse_filter(*filter) : Filter{}, service.model().tokenizer->encode(*input, false), top);
  json::array data;
  for (const FoundDocument& one : found) {
    json::object out = document_json(one.document);
    out["text"] = one.document.text;
    out["similarity"] = one.similarity ? json::value(shortest(*one.similarity)) : json::value();
    data.push_back(std::move(out));
  }
  return Answer{.body = json_text(json::object{{"object", "list"}, {"data", std::move(data)}}), .headers = headers};
}

Reply list_memory_jobs(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {});
  json::array data;
  for (const JobState& job : memories.jobs().list()) {
    data.push_back(job_json(job));
  }
  return Answer{.body = json_text(json::object{{"object", "list"}, {"data", std::move(data)}})};
}

Reply show_memory_job(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {});
  const auto job = memories.jobs().find(request.rest);
  if (!job) {
    fail(Kind::not_found, "[memory] there is no job {}", request.rest);
  }
  return Answer{.body = json_text(whole_job_json(*job))};
}

Reply cancel_memory_job(const HttpRequest& request, Service& service) {
  MemoryManager& memories = memories_of(service);
  check_query(request, service, {});
  const auto job = memories.jobs().find(request.rest);
  if (!job) {
    fail(Kind::not_found, "[memory] there is no job {}", request.rest);
  }
  if (!memories.jobs().cancel(request.rest)) {
    fail(Kind::conflict, "[memory] the job {} has ended", request.rest);
  }
  return Answer{.body = json_text(whole_job_json(memories.jobs().find(request.rest).value_or(*job)))};
}

std::optional<Reply> under_model(const HttpRequest& request, Service& service) {
  constexpr std::string_view family = "/memories";
  for (const std::string& id : service.options().ids) { // ids have slashes
    if (!request.rest.starts_with(id)) {
      continue;
    }
    const std::string_view rest = std::string_view(request.rest).substr(id.size());
    if (!rest.starts_with(family) || (rest.size() > family.size() && rest[family.size()] != '/')) {
      continue;
    }
    HttpRequest inner = request;
    inner.path = "/v1" + std::string(rest);
    inner.query["model"] = id;
    std::string allow;
    const Route* route = find_route(inner, allow);
    if (!route) {
      return wrong_method(request, allow);
    }
    if (route->on == Route::On::waiting) {
      return std::make_unique<Later>(Later{[handle = route->handle, inner = std::move(inner), &service](
                                               const std::atomic<bool>&) { return handle(inner, service); }});
    }
    return route->handle(inner, service);
  }
  return std::nullopt;
}

Reply change_under_model(const HttpRequest& request, Service& service) {
  if (auto inner = under_model(request, service)) {
    return std::move(*inner);
  }
  fail(Kind::not_found, "[server] no such path; got {} {}", request.method, request.path);
}

} // namespace parallm
