// Records in Neo4j 5 as a graph, by its HTTP Query API (POST /db/<database>/query/v2), with libcurl:
//
//   (:MemoryDocument {namespace, id, place, uid, created, tokens, dimensions, record, text, token_ids,
//                     embedding_<dimensions>, `meta.<key>` for each of its metadata})
//     -[:IN]-> (:MemoryNamespace {name, version})
//   (:MemoryStore {name: "store", count})   count of changes; a writer's statement first writes here, so that writers
//                                           come one after another
//
// `record` is the record as JSON, `place` the id's bytes in hex (Neo4j sorts and compares some characters differently);
// the other properties are for queries, ours and the graph's users'. Every call is one statement, so one transaction.
// But Neo4j has no snapshots: a statement sees what others commit meanwhile, and parts of it before others. So a
// selection locks its namespaces by writing to them, and waits for who writes there. Similarity is exact
// (vector.similarity.cosine) up to `exact` documents in a namespace; above, a vector index proposes.

#include "base/error.h"
#include "memory/backends.h"
#include "memory/pool.h"
#include "memory/record_json.h"
#include "memory/similarity.h"

#include <curl/curl.h>

#include <algorithm>
#include <set>

namespace parallm {

namespace {

constexpr size_t most_indexed = 2048; // dimensions that a vector index takes in every 5.x
constexpr const char* lock = "MERGE (s:MemoryStore {name: 'store'}) SET s.locked = true WITH s ";
constexpr const char* count_change =
    "SET s.count = coalesce(s.count, 0) + 1 "
    "MERGE (n:MemoryNamespace {name: $space}) SET n.version = s.count ";

using Rows = json::array;

class Connection {
 public:
  Connection(const Address& address, int timeout_ms) : shown_(address.shown()), timeout_ms_(timeout_ms) {
    const bool tls = address.scheme.ends_with("+s");
    const bool ipv6 = address.host.find(':') != std::string::npos;
    url_ = fmt::format(
        "{}://{}{}{}:{}/db/{}/query/v2",
        tls ? "https" : "http",
        ipv6 ? "[" : "",
        address.host,
        ipv6 ? "]" : "",
        address.port > 0 ? address.port
            : tls        ? 7473
                         : 7474,
        address.path.empty() ? "neo4j" : address.path);
    curl_.reset(curl_easy_init());
    check(curl_ != nullptr, "libcurl has memory");
    for (const char* line : {"Content-Type: application/json", "Accept: application/json", "Expect:"}) {
      headers_.reset(curl_slist_append(headers_.release(), line));
    }
    user_ = address.user;
    password_ = address.password;
  }

  Rows ask(const std::string& statement, const json::object& parameters = {}) {
    constexpr int tries = 5; // of what Neo4j calls transient: deadlocks above all
    for (int i = 1;; ++i) {
      json::value answer = send(json::serialize(json::object{{"statement", statement}, {"parameters", parameters}}));
      const json::value* errors = answer.is_object() ? answer.as_object().if_contains("errors") : nullptr;
      if (errors == nullptr || errors->as_array().empty()) {
        return std::move(answer.at("data").at("values").as_array());
      }
      const json::object& error = errors->as_array()[0].as_object();
      const std::string code(error.at("code").as_string());
      const bool transient = code.starts_with("Neo.TransientError");
      if (!transient || i == tries) {
        fail(
            transient || code.starts_with("Neo.DatabaseError") || code.starts_with("Neo.ClientError.Security")
                ? Kind::unavailable
                : Kind::internal,
            "[memory] {}: {} ({})",
            shown_,
            std::string_view(error.at("message").as_string()),
            code);
      }
    }
  }

  /** libcurl opens another connection where the server has closed this one. */
  static bool good() {
    return true;
  }

 private:
  struct Free {
    void operator()(CURL* curl) const {
      curl_easy_cleanup(curl);
    }
    void operator()(curl_slist* list) const {
      curl_slist_free_all(list);
    }
  };

  json::value send(const std::string& body) {
    std::string answer;
    CURL* curl = curl_.get();
    curl_easy_setopt(curl, CURLOPT_URL, url_.c_str());
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers_.get());
    curl_easy_setopt(curl, CURLOPT_POST, 1L);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data());
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, 5000L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, static_cast<long>(timeout_ms_));
    if (!user_.empty()) {
      curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
      curl_easy_setopt(curl, CURLOPT_USERNAME, user_.c_str());
      curl_easy_setopt(curl, CURLOPT_PASSWORD, password_.c_str());
    }
    curl_easy_setopt(
        curl, CURLOPT_WRITEFUNCTION, +[](char* bytes, size_t size, size_t count, void* into) {
          static_cast<std::string*>(into)->append(bytes, size * count);
          return size * count;
        });
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
    const CURLcode code = curl_easy_perform(curl);
    if (code != CURLE_OK) {
      fail(Kind::unavailable, "[memory] {}: {}", shown_, curl_easy_strerror(code));
    }
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (!answer.starts_with('{')) {
      fail(
          status >= 500 ? Kind::unavailable : Kind::internal,
          "[memory] {}: HTTP {}, and no JSON: is this Neo4j 5.19 or newer?",
          shown_,
          status);
    }
    return parse_json(answer, "Neo4j's answer");
  }

  std::string shown_, url_, user_, password_;
  int timeout_ms_;
  std::unique_ptr<CURL, Free> curl_;
  std::unique_ptr<curl_slist, Free> headers_;
};

json::array numbers(const std::vector<float>& vector) {
  return json::array(vector.begin(), vector.end());
}

std::string embedding_name(size_t dimensions) {
  return fmt::format("embedding_{}", dimensions);
}

/** A condition for `d`, whose values go into `parameters`: no text of a caller's gets into a statement. A comparison of
 * values of different types is null in Cypher, so no hit. */
std::string condition_of(const Filter& filter, json::object& parameters) {
  std::string out;
  for (size_t i = 0; i < filter.size(); ++i) {
    const Condition& condition = filter[i];
    const std::string value = fmt::format("d[$key{}]", i), given = fmt::format("$value{}", i);
    parameters[fmt::format("key{}", i)] = "meta." + condition.key;
    parameters[fmt::format("value{}", i)] =
        condition.op == Condition::Op::in ? json::value_from(condition.values) : condition.values[0];
    constexpr const char* signs[] = {"=", "", "IN", "<", "<=", ">", ">="}; // by Condition::Op
    out += condition.op == Condition::Op::ne
        ? fmt::format(" AND ({} < {} OR {} > {})", value, given, value, given) // <> holds between types
        : fmt::format(" AND {} {} {}", value, signs[static_cast<int>(condition.op)], given);
  }
  return out;
}

/** Matches `d` in the namespace of the name `space`. */
std::string match(bool ids) {
  return ids ? "UNWIND $ids AS id MATCH (d:MemoryDocument {namespace: space, id: id}) WHERE true"
             : "MATCH (:MemoryNamespace {name: space})<-[:IN]-(d:MemoryDocument) WHERE true";
}

std::string place_of(const std::string& id) {
  std::string out;
  for (const unsigned char c : id) {
    out += fmt::format("{:02x}", c);
  }
  return out;
}

json::array distinct(const std::vector<std::string>& ids) {
  const std::set<std::string> all(ids.begin(), ids.end());
  return json::array(all.begin(), all.end());
}

Document read_record(const json::value& text) {
  return record_of(parse_json(text.as_string(), "a record"));
}

void read_whole(const json::value& text, const json::value& ids, const json::value& embedding, Document& document) {
  document.text = text.as_string();
  document.token_ids = json::value_to<std::vector<int32_t>>(ids);
  if (embedding.is_array()) {
    for (const json::value& x : embedding.as_array()) {
      document.embedding.push_back(static_cast<float>(x.to_number<double>()));
    }
  }
}

class Neo4jRecords : public Records {
 public:
  Neo4jRecords(std::function<std::unique_ptr<Connection>()> connect, size_t exact)
      : pool_(std::move(connect)), exact_(exact) {
    const auto connection = pool_.borrow();
    for (const char* what :
         {"memory_document FOR (d:MemoryDocument) REQUIRE (d.namespace, d.id) IS UNIQUE",
          "memory_uid FOR (d:MemoryDocument) REQUIRE d.uid IS UNIQUE",
          "memory_namespace FOR (n:MemoryNamespace) REQUIRE n.name IS UNIQUE",
          "memory_store FOR (s:MemoryStore) REQUIRE s.name IS UNIQUE"}) {
      std::string statement = std::string("CREATE CONSTRAINT ") + what;
      connection->ask(statement.insert(statement.find(" FOR"), " IF NOT EXISTS"));
    }
  }

  Put put(const Document& document, IfExists if_exists) override {
    const auto connection = pool_.borrow();
    const size_t dimensions = document.embedding.size();
    make_index(*connection, dimensions);
    json::object properties = {
        {"namespace", document.space},
        {"id", document.id},
        {"place", place_of(document.id)},
        {"uid", document.uid},
        {"created", document.created},
        {"tokens", document.tokens},
        {"dimensions", dimensions},
        {"record", json::serialize(record_json(document))},
        {"text", document.text},
        {"token_ids", json::value_from(document.token_ids)}};
    if (dimensions > 0) {
      properties[embedding_name(dimensions)] = numbers(document.embedding);
    }
    for (const auto& [key, value] : document.metadata) {
      properties["meta." + std::string(key)] = value;
    }
    // libcurl may send a statement again over another connection when the first was lost: then `old` is this version.
    const Rows rows = connection->ask(
        std::string(lock) +
            "OPTIONAL MATCH (old:MemoryDocument {namespace: $space, id: $id}) WHERE old.uid <> $uid "
            "WITH s, old.uid AS replaced, old IS NOT NULL AND $fail AS exists "
            "FOREACH (_ IN CASE WHEN exists THEN [] ELSE [1] END | " +
            count_change +
            "MERGE (d:MemoryDocument {namespace: $space, id: $id}) SET d = $properties MERGE (d)-[:IN]->(n)) "
            "RETURN exists, replaced",
        {{"space", document.space},
         {"id", document.id},
         {"uid", document.uid},
         {"fail", if_exists == IfExists::fail},
         {"properties", properties}});
    const json::value& replaced = rows.at(0).at(1);
    return {rows.at(0).at(0).as_bool(), replaced.is_string() ? std::string(replaced.as_string()) : ""};
  }

  std::optional<Document> get(const std::string& space, const std::string& id) override {
    const Rows rows = pool_.borrow()->ask(
        "MATCH (d:MemoryDocument {namespace: $space, id: $id}) "
        "RETURN d.record, d.text, d.token_ids, d['embedding_' + d.dimensions]",
        {{"space", space}, {"id", id}});
    if (rows.empty()) {
      return {};
    }
    Document document = read_record(rows[0].at(0));
    read_whole(rows[0].at(1), rows[0].at(2), rows[0].at(3), document);
    return document;
  }

  Page list(const std::string& space, const std::string& after, size_t limit, const Filter& filter) override {
    const auto most = static_cast<int64_t>(std::min<size_t>(limit, INT32_MAX)) + 1;
    json::object parameters = {{"space", space}, {"after", place_of(after)}, {"limit", most}};
    const std::string condition = condition_of(filter, parameters);
    const Rows rows = pool_.borrow()->ask(
        "WITH $space AS space " + match(false) + " AND d.place > $after" + condition +
            " RETURN d.record ORDER BY d.place LIMIT $limit",
        parameters);
    Page page;
    page.more = rows.size() > limit;
    for (size_t i = 0; i < std::min(limit, rows.size()); ++i) {
      page.documents.push_back(read_record(rows[i].at(0)));
    }
    return page;
  }

  std::vector<Namespace> namespaces() override {
    const Rows rows =
        pool_.borrow()->ask("MATCH (n:MemoryNamespace)<-[:IN]-(d) RETURN n.name, count(d), sum(d.tokens), n.version");
    std::vector<Namespace> all;
    for (const json::value& row : rows) {
      all.push_back(
          {std::string(row.at(0).as_string()),
           row.at(1).to_number<uint64_t>(),
           row.at(2).to_number<uint64_t>(),
           row.at(3).to_number<uint64_t>()});
    }
    return all;
  }

  Selection select(const Selector& selector) override {
    const auto connection = pool_.borrow();
    const bool by_index = may_propose(*connection, selector);
    Selection selection = select_once(*connection, selector, by_index);
    if (by_index && selection.hits.size() < selector.top * selector.spaces.size()) {
      selection = select_once(*connection, selector, false); // too few were of these namespaces, or of the filter
    }
    order_hits(selection.hits, selector);
    return selection;
  }

  std::vector<std::string> erase(const std::string& space, const std::vector<std::string>& ids, const Filter& filter)
      override {
    json::object parameters = {{"space", space}, {"ids", distinct(ids)}};
    const std::string condition = condition_of(filter, parameters);
    const Rows rows = pool_.borrow()->ask(
        std::string(lock) + "CALL { WITH s WITH $space AS space " + match(!ids.empty()) + condition +
            " RETURN collect(d) AS gone, collect(d.uid) AS uids } "
            "FOREACH (_ IN CASE WHEN size(gone) = 0 THEN [] ELSE [1] END | " +
            count_change + ") FOREACH (d IN gone | DETACH DELETE d) RETURN uids",
        parameters);
    return json::value_to<std::vector<std::string>>(rows.at(0).at(0));
  }

  uint64_t version(const std::string& space) override {
    return versions(*pool_.borrow(), {space}).front();
  }

  std::vector<bool> known(const std::vector<std::string>& uids) override {
    const Rows rows = pool_.borrow()->ask(
        "UNWIND range(0, size($uids) - 1) AS i OPTIONAL MATCH (d:MemoryDocument {uid: $uids[i]}) "
        "WITH i, d IS NOT NULL AS known ORDER BY i RETURN collect(known)",
        {{"uids", json::value_from(uids)}});
    return json::value_to<std::vector<bool>>(rows.at(0).at(0));
  }

 private:
  bool is_indexed(size_t dimensions) EXCLUDES(mutex_) {
    Lock lock(mutex_);
    return indexed_.contains(dimensions);
  }

  void make_index(Connection& connection, size_t dimensions) EXCLUDES(mutex_) {
    if (dimensions == 0 || dimensions > most_indexed || is_indexed(dimensions)) {
      return;
    }
    connection.ask(fmt::format(
        "CREATE VECTOR INDEX memory_near_{0} IF NOT EXISTS FOR (d:MemoryDocument) ON (d.embedding_{0}) OPTIONS "
        "{{indexConfig: {{`vector.dimensions`: {0}, `vector.similarity_function`: 'cosine'}}}}",
        dimensions));
    connection.ask(fmt::format("CALL db.awaitIndex('memory_near_{}', 60)", dimensions));
    Lock lock(mutex_);
    indexed_.insert(dimensions);
  }

  static std::vector<uint64_t> versions(Connection& connection, const std::vector<std::string>& spaces) {
    const Rows rows = connection.ask(
        "UNWIND range(0, size($spaces) - 1) AS i OPTIONAL MATCH (n:MemoryNamespace {name: $spaces[i]}) "
        "WITH i, coalesce(n.version, 0) AS version ORDER BY i RETURN collect(version)",
        {{"spaces", json::value_from(spaces)}});
    return json::value_to<std::vector<uint64_t>>(rows.at(0).at(0));
  }

  /** Whether a vector index may propose: it is over all namespaces, so it pays only for large ones. */
  bool may_propose(Connection& connection, const Selector& selector) {
    const size_t dimensions = selector.embedding.size();
    if (selector.top == 0 || dimensions > most_indexed || !selector.ids.empty()) {
      return false;
    }
    const Rows rows = connection.ask(
        "UNWIND $spaces AS space MATCH (n:MemoryNamespace {name: space}) RETURN coalesce(max(COUNT {(n)<-[:IN]-()}), 0)",
        {{"spaces", json::value_from(selector.spaces)}});
    if (rows.at(0).at(0).to_number<size_t>() <= exact_) {
      return false;
    }
    make_index(connection, dimensions); // there, unless no vector of this length is
    return true;
  }

  static Selection select_once(Connection& connection, const Selector& selector, bool by_index) {
    const size_t dimensions = selector.embedding.size();
    const bool ranked = dimensions > 0;
    json::object parameters = {
        {"spaces", json::value_from(selector.spaces)},
        {"ids", distinct(selector.ids)},
        {"query", numbers(selector.embedding)},
        {"dimensions", dimensions},
        {"top", selector.top}};
    const std::string condition = condition_of(selector.filter, parameters);
    const std::string embedding = "d." + embedding_name(dimensions);
    std::string documents;
    if (by_index) {
      constexpr size_t spare = 8; // other namespaces, and what the filter passes over
      parameters["proposals"] = selector.top * spare;
      documents = fmt::format(
          "CALL db.index.vector.queryNodes('memory_near_{}', $proposals, $query) YIELD node AS d "
          "WHERE d.namespace = space{}",
          dimensions,
          condition);
    } else {
      documents = match(!selector.ids.empty()) + (ranked ? " AND d.dimensions = $dimensions" : "") + condition;
    }
    const std::string similarity = ranked ? "vector.similarity.cosine(" + embedding + ", $query)" : "0.5";
    const Rows rows = connection.ask(
        "UNWIND range(0, size($spaces) - 1) AS i OPTIONAL MATCH (n:MemoryNamespace {name: $spaces[i]}) "
        "WITH i, n ORDER BY $spaces[i] " // all take locks in one order
        "FOREACH (one IN CASE WHEN n IS NULL THEN [] ELSE [n] END | SET one.locked = true) "
        "WITH collect({i: i, n: n}) AS all UNWIND all AS one "
        "WITH one.i AS i, one.n AS n, coalesce(one.n.version, 0) AS version "
        "CALL { WITH n WITH n WHERE n IS NOT NULL WITH n, n.name AS space " +
            documents + " WITH d, " + similarity + " AS score" +
            (selector.top > 0 ? " ORDER BY score DESC, d.place LIMIT $top" : "") + " RETURN collect([d.record, score" +
            (selector.contents ? ", d.text, d.token_ids, d['embedding_' + d.dimensions]" : "") +
            "]) AS hits } RETURN version, hits ORDER BY i",
        parameters);
    Selection selection;
    for (const json::value& space : rows) {
      selection.versions.push_back(space.at(0).to_number<uint64_t>());
      for (const json::value& row : space.at(1).as_array()) {
        constexpr double scale = 2, offset = 1; // Neo4j's score is (1 + cosine) / 2
        Hit hit{read_record(row.at(0)), static_cast<float>(scale * row.at(1).to_number<double>() - offset)};
        if (selector.contents) {
          read_whole(row.at(2), row.at(3), row.at(4), hit.document);
        }
        selection.hits.push_back(std::move(hit));
      }
    }
    return selection;
  }

  Pool<Connection> pool_;
  const size_t exact_;
  Mutex mutex_;
  std::set<size_t> indexed_ GUARDED_BY(mutex_); // dimensions whose index this process has made or found
};

} // namespace

std::unique_ptr<Records> open_neo4j(Address& address) {
  if (address.host.empty()) {
    address.host = "127.0.0.1";
  }
  const int timeout = address.take_timeout();
  const size_t exact = address.take_exact();
  curl_global_init(CURL_GLOBAL_DEFAULT);
  return std::make_unique<Neo4jRecords>(
      [address, timeout] { return std::make_unique<Connection>(address, timeout); }, exact);
}

} // namespace parallm
