// Records in PostgreSQL with pgvector, by libpq. The tables are below, in full; they lie in a schema of their own.
// Similarity is exact, by comparing with the namespace's rows, up to `exact` documents; above, by pgvector's HNSW
// index, whose scan goes on (iterative_scan) until the filter has left enough.

#include "base/error.h"
#include "memory/backends.h"
#include "memory/pool.h"
#include "memory/record_json.h"
#include "memory/similarity.h"

#include <libpq-fe.h>
#include <poll.h>

#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <set>

namespace parallm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* schema = R"(
  CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;
  CREATE SEQUENCE IF NOT EXISTS changes;
  CREATE TABLE IF NOT EXISTS spaces (
    space text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL           -- of `changes` at the last change of this namespace
  );
  CREATE TABLE IF NOT EXISTS documents (
    space text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    uid text NOT NULL UNIQUE,
    created bigint NOT NULL,
    tokens bigint NOT NULL,
    metadata jsonb NOT NULL,
    options json NOT NULL,
    header text NOT NULL,
    fingerprint text NOT NULL,
    dimensions integer NOT NULL,      -- of embedding; 0: none
    embedding vector,
    text text NOT NULL,
    token_ids bytea NOT NULL,         -- int32, little-endian
    PRIMARY KEY (space, id)
  );
  CREATE INDEX IF NOT EXISTS documents_metadata ON documents USING gin (metadata jsonb_path_ops);
)";
constexpr const char* columns = "space, id, uid, created, tokens, metadata, options, header, fingerprint";
constexpr int embedding_column = 9, text_column = 10, ids_column = 11, similarity_column = 12;
constexpr size_t most_indexed = 2000; // dimensions that pgvector's HNSW takes
constexpr size_t most_searched = 1000; // and the greatest ef_search

struct Value {
  std::string bytes;
  bool binary = false;
};

class Result {
 public:
  explicit Result(PGresult* result) : result_(result, PQclear) {}
  int rows() const {
    return PQntuples(result_.get());
  }
  std::string_view text(int row, int column) const {
    return {PQgetvalue(result_.get(), row, column), static_cast<size_t>(PQgetlength(result_.get(), row, column))};
  }
  std::string string(int row, int column) const {
    return std::string(text(row, column));
  }
  template <typename Number>
  Number number(int row, int column) const {
    const std::string_view digits = text(row, column);
    Number value{};
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return value;
  }
  std::string bytea(int row, int column) const {
    size_t size = 0;
    const std::unique_ptr<unsigned char, void (*)(void*)> bytes(
        PQunescapeBytea(reinterpret_cast<const unsigned char*>(PQgetvalue(result_.get(), row, column)), &size),
        PQfreemem);
    check(bytes != nullptr, "libpq has memory");
    return {reinterpret_cast<const char*>(bytes.get()), size};
  }
  PGresult* get() const {
    return result_.get();
  }

 private:
  std::unique_ptr<PGresult, void (*)(PGresult*)> result_;
};

class Connection {
 public:
  Connection(const std::map<std::string, std::string>& words, std::string shown, std::chrono::milliseconds timeout)
      : shown_(std::move(shown)), timeout_(timeout) {
    std::vector<const char*> names, values;
    for (const auto& [name, value] : words) {
      names.push_back(name.c_str());
      values.push_back(value.c_str());
    }
    names.push_back(nullptr);
    values.push_back(nullptr);
    connection_.reset(PQconnectdbParams(names.data(), values.data(), 0));
    if (PQstatus(connection_.get()) != CONNECTION_OK) {
      fail_lost();
    }
    PQsetNoticeProcessor(
        connection_.get(), [](void*, const char*) {}, nullptr); // "already exists, skipping"
  }

  /** Statements without values and results. */
  void run(const std::string& sql) {
    finish(PQsendQuery(connection_.get(), sql.c_str()), sql);
  }

  Result ask(const std::string& sql, const std::vector<Value>& values = {}) {
    std::vector<const char*> bytes;
    std::vector<int> lengths, binary;
    for (const Value& value : values) {
      bytes.push_back(value.bytes.c_str());
      lengths.push_back(static_cast<int>(value.bytes.size()));
      binary.push_back(value.binary ? 1 : 0);
    }
    const int sent = PQsendQueryParams(
        connection_.get(),
        sql.c_str(),
        static_cast<int>(values.size()),
        nullptr,
        bytes.data(),
        lengths.data(),
        binary.data(),
        0);
    return finish(sent, sql);
  }

  /** Nothing half done, and nothing to read: the end of the connection would be. */
  bool good() const {
    pollfd socket{PQsocket(connection_.get()), POLLIN, 0};
    return !stuck_ && PQstatus(connection_.get()) == CONNECTION_OK &&
        PQtransactionStatus(connection_.get()) == PQTRANS_IDLE && ::poll(&socket, 1, 0) == 0;
  }

 private:
  struct Close {
    void operator()(PGconn* connection) const {
      PQfinish(connection);
    }
  };

  [[noreturn]] void fail_lost() {
    stuck_ = true;
    std::string reason = PQerrorMessage(connection_.get());
    reason.erase(reason.find_last_not_of('\n') + 1);
    fail(Kind::unavailable, "[memory] {}: {}", shown_, reason);
  }

  Result finish(int sent, const std::string& sql) {
    if (sent == 0) {
      fail_lost();
    }
    Result last(nullptr);
    const auto end = Clock::now() + timeout_;
    for (;;) {
      wait_for_answer(end);
      PGresult* next = PQgetResult(connection_.get());
      if (next == nullptr) {
        break;
      }
      last = Result(next);
    }
    const ExecStatusType status = PQresultStatus(last.get());
    if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK) {
      return last;
    }
    const char* state = PQresultErrorField(last.get(), PG_DIAG_SQLSTATE);
    if (PQstatus(connection_.get()) != CONNECTION_OK || state == nullptr) {
      fail_lost();
    }
    // 08: connection, 40: deadlock, 53: no room, 55: lock, 57: shutting down, 58: the system, 25006: a standby
    bool passing = std::strcmp(state, "25006") == 0;
    for (const char* kind : {"08", "40", "53", "55", "57", "58"}) {
      passing = passing || std::strncmp(state, kind, 2) == 0;
    }
    fail(
        passing ? Kind::unavailable : Kind::internal,
        "[memory] {}: {} ({}) in: {}",
        shown_,
        PQresultErrorField(last.get(), PG_DIAG_MESSAGE_PRIMARY),
        state,
        sql.substr(0, 80));
  }

  /** Till PQgetResult need not wait. */
  void wait_for_answer(Clock::time_point end) {
    for (;;) {
      const int unsent = PQflush(connection_.get());
      if (PQconsumeInput(connection_.get()) == 0 || unsent < 0) {
        fail_lost();
      }
      if (PQisBusy(connection_.get()) == 0) {
        return;
      }
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
      if (left <= 0) {
        stuck_ = true;
        fail(Kind::unavailable, "[memory] {}: no answer in {} ms", shown_, timeout_.count());
      }
      pollfd socket{PQsocket(connection_.get()), static_cast<short>(POLLIN | (unsent > 0 ? POLLOUT : 0)), 0};
      ::poll(&socket, 1, static_cast<int>(left));
    }
  }

  std::string shown_;
  std::chrono::milliseconds timeout_;
  std::unique_ptr<PGconn, Close> connection_;
  bool stuck_ = false;
};

/** A part of a WHERE, and the values of the whole statement so far. */
struct Where {
  std::string sql;
  std::vector<Value> values;

  /** Its number in the statement, "$3". */
  std::string add(std::string value, bool binary = false) {
    values.push_back({std::move(value), binary});
    return "$" + std::to_string(values.size());
  }
};

void add_where(Where& where, const std::string& space, const std::vector<std::string>& ids, const Filter& filter) {
  where.sql += "space = " + where.add(space);
  if (!ids.empty()) {
    where.sql += " AND id IN (SELECT jsonb_array_elements_text(" + where.add(json::serialize(json::value_from(ids))) +
        "::jsonb))";
  }
  for (const Condition& condition : filter) {
    const json::value& first = condition.values[0];
    if (condition.op == Condition::Op::eq) { // what the index serves
      where.sql += " AND metadata @> " + where.add(json::serialize(json::object{{condition.key, first}})) + "::jsonb";
      continue;
    }
    const std::string value = "metadata -> " + where.add(condition.key) + "::text";
    const char* type = first.is_string() ? "string" : first.is_bool() ? "boolean" : "number";
    where.sql += fmt::format(" AND jsonb_typeof({}) = '{}' AND ({}) ", value, type, value);
    constexpr const char* signs[] = {"=", "<>", "IN", "<", "<=", ">", ">="}; // by Condition::Op
    where.sql += signs[static_cast<int>(condition.op)];
    where.sql += condition.op == Condition::Op::in ? " (SELECT jsonb_array_elements(" +
            where.add(json::serialize(json::value_from(condition.values))) + "::jsonb))"
                                                   : " " + where.add(json::serialize(first)) + "::jsonb";
  }
}

std::string vector_text(const std::vector<float>& vector) {
  std::string text;
  for (const float x : vector) {
    text += fmt::format("{}{}", text.empty() ? '[' : ',', x);
  }
  return text + ']';
}

std::vector<float> read_vector(const std::string& text) {
  std::vector<float> vector;
  char* end = nullptr;
  for (const char* at = text.c_str(); *at == '[' || *at == ','; at = end) {
    vector.push_back(std::strtof(at + 1, &end)); // not from_chars, which not every library has for floats
  }
  return vector;
}

Document read_row(const Result& result, int row, bool contents) {
  Document document;
  document.space = result.string(row, 0);
  document.id = result.string(row, 1);
  document.uid = result.string(row, 2);
  document.created = result.number<int64_t>(row, 3);
  document.tokens = result.number<uint64_t>(row, 4);
  document.metadata = parse_json(result.text(row, 5), "metadata").as_object();
  document.options = parse_json(result.text(row, 6), "options").as_object();
  document.header = result.string(row, 7);
  document.fingerprint = result.string(row, 8);
  if (contents) {
    document.embedding = read_vector(result.string(row, embedding_column));
    document.text = result.string(row, text_column);
    document.token_ids = ids_of(result.bytea(row, ids_column));
  }
  return document;
}

/** Rolled back by the server when the connection is dropped, which a pool does to one inside a transaction. */
class Transaction {
 public:
  Transaction(Connection& connection, const char* begin) : connection_(connection) {
    connection_.run(begin);
  }
  void commit() {
    connection_.run("COMMIT");
  }
  void roll_back() {
    connection_.run("ROLLBACK");
  }

 private:
  Connection& connection_;
};

constexpr const char* begin_write = "BEGIN ISOLATION LEVEL READ COMMITTED";
constexpr const char* begin_read = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

class PostgresRecords : public Records {
 public:
  PostgresRecords(std::function<std::unique_ptr<Connection>()> connect, const std::string& name, size_t exact)
      : pool_(std::move(connect)), exact_(exact) {
    const auto connection = pool_.borrow();
    Transaction transaction(*connection, begin_write);
    lock_schema(*connection);
    connection->run("CREATE SCHEMA IF NOT EXISTS " + name);
    connection->run(schema);
    transaction.commit();
  }

  Put put(const Document& document, IfExists if_exists) override {
    const auto connection = pool_.borrow();
    make_index(*connection, document.embedding.size());
    Transaction transaction(*connection, begin_write);
    changed(*connection, document.space); // first, since it also makes other writers of the namespace wait
    Put done;
    const Result old =
        connection->ask("SELECT uid FROM documents WHERE space = $1 AND id = $2", {{document.space}, {document.id}});
    done.replaced = old.rows() > 0 ? old.string(0, 0) : "";
    done.exists = old.rows() > 0 && if_exists == IfExists::fail;
    if (done.exists) {
      transaction.roll_back();
      return done;
    }
    connection->ask(
        "INSERT INTO documents VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11, '')::vector, $12, $13) "
        "ON CONFLICT (space, id) DO UPDATE SET uid = excluded.uid, created = excluded.created, "
        "tokens = excluded.tokens, metadata = excluded.metadata, options = excluded.options, "
        "header = excluded.header, fingerprint = excluded.fingerprint, dimensions = excluded.dimensions, "
        "embedding = excluded.embedding, text = excluded.text, token_ids = excluded.token_ids",
        {{document.space},
         {document.id},
         {document.uid},
         {std::to_string(document.created)},
         {std::to_string(document.tokens)},
         {json::serialize(document.metadata)},
         {json::serialize(document.options)},
         {document.header},
         {document.fingerprint},
         {std::to_string(document.embedding.size())},
         {document.embedding.empty() ? "" : vector_text(document.embedding)},
         {document.text},
         {std::string(ids_bytes(document.token_ids)), true}});
    transaction.commit();
    return done;
  }

  std::optional<Document> get(const std::string& space, const std::string& id) override {
    const Result row = pool_.borrow()->ask(
        fmt::format("SELECT {}, embedding, text, token_ids FROM documents WHERE space = $1 AND id = $2", columns),
        {{space}, {id}});
    return row.rows() > 0 ? std::optional(read_row(row, 0, true)) : std::nullopt;
  }

  Page list(const std::string& space, const std::string& after, size_t limit, const Filter& filter) override {
    Where where;
    add_where(where, space, {}, filter);
    where.sql += " AND id > " + where.add(after);
    const Result rows = pool_.borrow()->ask(
        fmt::format(
            "SELECT {} FROM documents WHERE {} ORDER BY id LIMIT {}",
            columns,
            where.sql,
            std::min<size_t>(limit, INT32_MAX) + 1),
        where.values);
    Page page;
    for (int row = 0; row < rows.rows(); ++row) {
      page.documents.push_back(read_row(rows, row, false));
    }
    page.more = page.documents.size() > limit;
    page.documents.resize(std::min(limit, page.documents.size()));
    return page;
  }

  std::vector<Namespace> namespaces() override {
    const Result rows = pool_.borrow()->ask(
        "SELECT space, count(*), sum(tokens), max(version) FROM documents JOIN spaces USING (space) GROUP BY space");
    std::vector<Namespace> all;
    for (int row = 0; row < rows.rows(); ++row) {
      all.push_back(
          {rows.string(row, 0),
           rows.number<uint64_t>(row, 1),
           rows.number<uint64_t>(row, 2),
           rows.number<uint64_t>(row, 3)});
    }
    return all;
  }

  Selection select(const Selector& selector) override {
    const auto connection = pool_.borrow();
    Transaction transaction(*connection, begin_read);
    Selection selection;
    for (const std::string& space : selector.spaces) {
      selection.versions.push_back(version(*connection, space));
      select_in(*connection, space, selector, selection.hits);
    }
    transaction.commit();
    order_hits(selection.hits, selector);
    return selection;
  }

  std::vector<std::string> erase(const std::string& space, const std::vector<std::string>& ids, const Filter& filter)
      override {
    const auto connection = pool_.borrow();
    Transaction transaction(*connection, begin_write);
    changed(*connection, space);
    Where where;
    add_where(where, space, ids, filter);
    const Result rows = connection->ask("DELETE FROM documents WHERE " + where.sql + " RETURNING uid", where.values);
    std::vector<std::string> uids;
    for (int row = 0; row < rows.rows(); ++row) {
      uids.push_back(rows.string(row, 0));
    }
    uids.empty() ? transaction.roll_back() : transaction.commit();
    return uids;
  }

  uint64_t version(const std::string& space) override {
    return version(*pool_.borrow(), space);
  }

  std::vector<bool> known(const std::vector<std::string>& uids) override {
    const Result rows = pool_.borrow()->ask(
        "SELECT uid FROM documents WHERE uid IN (SELECT jsonb_array_elements_text($1::jsonb))",
        {{json::serialize(json::value_from(uids))}});
    std::set<std::string, std::less<>> there;
    for (int row = 0; row < rows.rows(); ++row) {
      there.insert(rows.string(row, 0));
    }
    std::vector<bool> known;
    for (const std::string& uid : uids) {
      known.push_back(there.contains(uid));
    }
    return known;
  }

 private:
  /** Of who makes tables and indexes: IF NOT EXISTS alone fails when two do it at once. Held to the transaction's end.
   */
  static void lock_schema(Connection& connection) {
    connection.ask("SELECT pg_advisory_xact_lock(7028361912)");
  }

  bool is_indexed(size_t dimensions) EXCLUDES(mutex_) {
    Lock lock(mutex_);
    return indexed_.contains(dimensions);
  }

  void make_index(Connection& connection, size_t dimensions) EXCLUDES(mutex_) {
    if (dimensions == 0 || dimensions > most_indexed || is_indexed(dimensions)) {
      return;
    }
    Transaction transaction(connection, begin_write);
    lock_schema(connection);
    connection.run(fmt::format(
        "CREATE INDEX IF NOT EXISTS documents_near_{0} ON documents "
        "USING hnsw ((embedding::vector({0})) vector_cosine_ops) WHERE dimensions = {0}",
        dimensions));
    transaction.commit();
    Lock lock(mutex_);
    indexed_.insert(dimensions);
  }

  void select_in(Connection& connection, const std::string& space, const Selector& selector, std::vector<Hit>& hits)
      const {
    const bool ranked = !selector.embedding.empty();
    Where where;
    std::string similarity = "0", order;
    if (ranked) {
      const size_t dimensions = selector.embedding.size();
      const std::string query = where.add(vector_text(selector.embedding));
      where.sql = fmt::format("dimensions = {} AND ", dimensions);
      // Only the cast to the index's type lets the index serve; without it every row is compared.
      const std::string cast = use_index(connection, space, selector) ? fmt::format("::vector({})", dimensions) : "";
      const std::string distance = fmt::format("embedding{} <=> {}::vector", cast, query);
      similarity = "1 - (" + distance + ")";
      order = selector.top == 0 ? ""
          : cast.empty() ? fmt::format(" ORDER BY {}, id LIMIT {}", distance, std::min<size_t>(selector.top, INT32_MAX))
                         : fmt::format(" ORDER BY {} LIMIT {}", distance, selector.top);
    }
    add_where(where, space, selector.ids, selector.filter);
    const Result rows = connection.ask(
        fmt::format(
            "SELECT {}, {}, {} FROM documents WHERE {}{}",
            columns,
            selector.contents ? "embedding, text, token_ids" : "NULL, NULL, NULL",
            similarity,
            where.sql,
            order),
        where.values);
    for (int row = 0; row < rows.rows(); ++row) {
      hits.push_back(
          {read_row(rows, row, selector.contents), std::strtof(rows.string(row, similarity_column).c_str(), nullptr)});
    }
  }

  bool use_index(Connection& connection, const std::string& space, const Selector& selector) const {
    if (selector.top == 0 || selector.top > most_searched || !selector.ids.empty() ||
        selector.embedding.size() > most_indexed) {
      return false;
    }
    const Result count = connection.ask(
        fmt::format("SELECT count(*) FROM (SELECT 1 FROM documents WHERE space = $1 LIMIT {}) AS first", exact_ + 1),
        {{space}});
    if (count.number<size_t>(0, 0) <= exact_) {
      return false;
    }
    connection.run(fmt::format(
        "SET LOCAL hnsw.iterative_scan = strict_order; SET LOCAL hnsw.ef_search = {}; SET LOCAL enable_sort = off",
        std::clamp<size_t>(selector.top * 4, 100, most_searched)));
    return true;
  }

  static uint64_t version(Connection& connection, const std::string& space) {
    const Result row = connection.ask("SELECT version FROM spaces WHERE space = $1", {{space}});
    return row.rows() > 0 ? row.number<uint64_t>(0, 0) : 0;
  }

  static void changed(Connection& connection, const std::string& space) {
    connection.ask(
        "INSERT INTO spaces VALUES ($1, nextval('changes')) "
        "ON CONFLICT (space) DO UPDATE SET version = nextval('changes')",
        {{space}});
  }

  Pool<Connection> pool_;
  const size_t exact_;
  Mutex mutex_;
  std::set<size_t> indexed_ GUARDED_BY(mutex_); // dimensions whose index this process has made or found
};

} // namespace

std::unique_ptr<Records> open_postgres(Address& address) {
  const size_t exact = address.take_exact();
  const std::chrono::milliseconds timeout(address.take_timeout());
  const std::string name = address.take("schema", "mlx_parallm_memory");
  if (name.empty() || name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") != name.npos) {
    fail(Kind::invalid, "[memory] schema of a store's address is of a-z, 0-9 and _; got {}", name);
  }
  std::map<std::string, std::string> words = {
      {"connect_timeout", "5"},
      {"tcp_user_timeout", std::to_string(timeout.count())},
      {"application_name", "mlx_parallm"},
      {"client_encoding", "UTF8"},
      {"options", "-c search_path=" + name + ",public"}};
  for (auto& [parameter, value] :
       address.parameters) { // the rest is libpq's: sslmode and others; it refuses unknown ones
    words[parameter] = parameter == "options" ? words[parameter] + " " + value : value;
  }
  address.parameters.clear();
  for (const auto& [word, value] : std::map<std::string, std::string>{
           {"host", address.host},
           {"port", address.port > 0 ? std::to_string(address.port) : ""},
           {"user", address.user},
           {"password", address.password},
           {"dbname", address.path}}) {
    if (!value.empty()) {
      words[word] = value;
    }
  }
  return std::make_unique<PostgresRecords>(
      [words, shown = address.shown(), timeout] { return std::make_unique<Connection>(words, shown, timeout); },
      name,
      exact);
}

} // namespace parallm
