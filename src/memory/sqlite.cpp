// Records in one SQLite file, in WAL mode: readers and a writer don't wait for each other, and a reader's transaction
// is one state. Similarity by sqlite-vec's vec_distance_cosine over the namespace's rows: exact. The tables are below,
// in full.

#include "base/error.h"
#include "memory/backends.h"
#include "memory/durable.h"
#include "memory/pool.h"
#include "memory/record_json.h"
#include "memory/similarity.h"

#include <sqlite3.h>

#include <filesystem>
#include <variant>

// sqlite-vec is compiled in (cmake/memory.cmake); its header would bring another SQLite's.
extern "C" int sqlite3_vec_init(sqlite3* database, char** error, const void* api);

namespace parallm {

namespace {

constexpr const char* schema = R"(
  CREATE TABLE IF NOT EXISTS spaces (
    space TEXT PRIMARY KEY,
    version INTEGER NOT NULL          -- the store's count of changes at the last one of this namespace
  ) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS documents (
    space TEXT NOT NULL,
    id TEXT NOT NULL,
    uid TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    metadata TEXT NOT NULL,           -- JSON
    options TEXT NOT NULL,            -- JSON
    header TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    embedding BLOB,                   -- float32, little-endian; NULL: none
    PRIMARY KEY (space, id)
  );
  CREATE TABLE IF NOT EXISTS contents (
    uid TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    token_ids BLOB NOT NULL           -- int32, little-endian
  );
)";
constexpr int schema_version = 1;
constexpr const char* columns =
    "documents.space, id, documents.uid, created, tokens, metadata, options, header, fingerprint, embedding";
constexpr int embedding_column = 9, text_column = 10, ids_column = 11, similarity_column = 12;

using Bound = std::variant<int64_t, double, std::string>;

/** Bytes rather than text. */
struct Blob {
  std::string_view bytes;
};

class Connection {
 public:
  Connection(const std::string& path, int timeout_ms) : path_(path) {
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(path.c_str(), &database_, flags, nullptr) != SQLITE_OK) {
      const std::string reason = database_ == nullptr ? "out of memory" : sqlite3_errmsg(database_);
      sqlite3_close(database_);
      fail(Kind::unavailable, "[memory] can't open {}: {}", path, reason);
    }
    sqlite3_busy_timeout(database_, timeout_ms);
  }
  ~Connection() {
    sqlite3_close_v2(database_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void set_up() {
    expect(sqlite3_vec_init(database_, nullptr, nullptr));
    run("PRAGMA synchronous = FULL");
    run("PRAGMA foreign_keys = OFF");
  }
  /** Waits for others itself, since SQLite does not in this. */
  void use_wal(int timeout_ms) {
    constexpr int pause_ms = 10;
    int code = SQLITE_BUSY;
    for (int waited = 0; code == SQLITE_BUSY && waited <= timeout_ms; waited += pause_ms) {
      code = sqlite3_exec(database_, "PRAGMA journal_mode = WAL", nullptr, nullptr, nullptr);
      sqlite3_sleep(code == SQLITE_BUSY ? pause_ms : 0);
    }
    expect(code);
  }
  void run(const char* sql) {
    expect(sqlite3_exec(database_, sql, nullptr, nullptr, nullptr));
  }
  void expect(int code) const {
    if (code != SQLITE_OK && code != SQLITE_ROW && code != SQLITE_DONE) {
      const int kind = code & 0xff;
      const bool passing = kind == SQLITE_BUSY || kind == SQLITE_LOCKED || kind == SQLITE_IOERR ||
          kind == SQLITE_FULL || kind == SQLITE_CANTOPEN || kind == SQLITE_READONLY || kind == SQLITE_NOMEM;
      fail(passing ? Kind::unavailable : Kind::internal, "[memory] {}: {}", path_, sqlite3_errmsg(database_));
    }
  }
  bool good() const {
    return sqlite3_get_autocommit(database_) != 0;
  }
  sqlite3* get() const {
    return database_;
  }

 private:
  std::string path_;
  sqlite3* database_ = nullptr;
};

/** One SQL statement with its values. */
class Statement {
 public:
  Statement(const Connection& connection, const std::string& sql) : connection_(connection) {
    connection.expect(
        sqlite3_prepare_v2(connection.get(), sql.c_str(), static_cast<int>(sql.size()), &statement_, nullptr));
  }
  ~Statement() {
    sqlite3_finalize(statement_);
  }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& add(const std::string& text) {
    return bound(sqlite3_bind_text64(statement_, ++count_, text.data(), text.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
  }
  Statement& add(Blob blob) {
    return bound(
        blob.bytes.empty()
            ? sqlite3_bind_zeroblob(statement_, ++count_, 0)
            : sqlite3_bind_blob64(statement_, ++count_, blob.bytes.data(), blob.bytes.size(), SQLITE_TRANSIENT));
  }
  Statement& add_null() {
    return bound(sqlite3_bind_null(statement_, ++count_));
  }
  Statement& add(int64_t number) {
    return bound(sqlite3_bind_int64(statement_, ++count_, number));
  }
  Statement& add(double number) {
    return bound(sqlite3_bind_double(statement_, ++count_, number));
  }
  Statement& add(const std::vector<Bound>& values) {
    for (const Bound& value : values) {
      std::visit([this](const auto& one) { add(one); }, value);
    }
    return *this;
  }

  bool step() {
    const int code = sqlite3_step(statement_);
    connection_.expect(code);
    return code == SQLITE_ROW;
  }
  std::string_view bytes(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    return {static_cast<const char*>(data), static_cast<size_t>(sqlite3_column_bytes(statement_, column))};
  }
  std::string text(int column) const {
    return std::string(bytes(column));
  }
  int64_t number(int column) const {
    return sqlite3_column_int64(statement_, column);
  }
  double real(int column) const {
    return sqlite3_column_double(statement_, column);
  }

 private:
  Statement& bound(int code) {
    connection_.expect(code);
    return *this;
  }

  const Connection& connection_;
  sqlite3_stmt* statement_ = nullptr;
  int count_ = 0;
};

/** Rolled back unless committed. */
class Transaction {
 public:
  Transaction(Connection& connection, bool writes) : connection_(connection) {
    connection_.run(writes ? "BEGIN IMMEDIATE" : "BEGIN");
  }
  ~Transaction() {
    if (!connection_.good()) {
      sqlite3_exec(connection_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    }
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit() {
    connection_.run("COMMIT");
  }

 private:
  Connection& connection_;
};

/** A part of a WHERE and its values. */
struct Where {
  std::string sql;
  std::vector<Bound> values;

  void in_list(size_t count) {
    sql += " IN (?";
    for (size_t i = 1; i < count; ++i) {
      sql += ",?";
    }
    sql += ")";
  }
};

Where where(const std::string& space, const std::vector<std::string>& ids, const Filter& filter) {
  Where out{"documents.space = ?", {space}};
  if (!ids.empty()) { // as JSON, since a statement takes only so many values
    out.sql += " AND id IN (SELECT value FROM json_each(?))";
    out.values.emplace_back(json::serialize(json::value_from(ids)));
  }
  for (const Condition& condition : filter) {
    const json::value& first = condition.values[0];
    const char* types = first.is_string() ? "('text')" : first.is_bool() ? "('true','false')" : "('integer','real')";
    out.sql += std::string(" AND EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND type IN ") + types +
        " AND value ";
    out.values.emplace_back(condition.key);
    constexpr const char* signs[] = {"= ?", "<> ?", "", "< ?", "<= ?", "> ?", ">= ?"}; // by Condition::Op
    out.sql += signs[static_cast<int>(condition.op)];
    if (condition.op == Condition::Op::in) {
      out.in_list(condition.values.size());
    }
    out.sql += ")";
    for (const json::value& value : condition.values) {
      if (value.is_string()) {
        out.values.emplace_back(std::string(value.get_string()));
      } else if (value.is_bool()) {
        out.values.emplace_back(static_cast<int64_t>(value.get_bool()));
      } else {
        out.values.emplace_back(value.to_number<double>());
      }
    }
  }
  return out;
}

Document read_row(const Statement& row, bool embedding, bool contents) {
  Document document;
  document.space = row.text(0);
  document.id = row.text(1);
  document.uid = row.text(2);
  document.created = row.number(3);
  document.tokens = static_cast<uint64_t>(row.number(4));
  document.metadata = parse_json(row.text(5), "metadata").as_object();
  document.options = parse_json(row.text(6), "options").as_object();
  document.header = row.text(7);
  document.fingerprint = row.text(8);
  if (embedding) {
    document.embedding = vector_of(row.bytes(embedding_column));
  }
  if (contents) {
    document.text = row.text(text_column);
    document.token_ids = ids_of(row.bytes(ids_column));
  }
  return document;
}

class SqliteRecords : public Records {
 public:
  SqliteRecords(const std::string& path, int timeout_ms)
      : pool_([path, timeout_ms] {
          auto connection = std::make_unique<Connection>(path, timeout_ms);
          connection->set_up();
          return connection;
        }) {
    const auto connection = pool_.borrow();
    connection->use_wal(timeout_ms);
    Transaction transaction(*connection, true);
    Statement version(*connection, "PRAGMA user_version");
    version.step();
    if (version.number(0) != 0 && version.number(0) != schema_version) {
      fail(Kind::invalid, "[memory] {} is of another format", path);
    }
    connection->run(schema);
    connection->run(fmt::format("PRAGMA user_version = {}", schema_version).c_str());
    transaction.commit();
  }

  Put put(const Document& document, IfExists if_exists) override {
    const auto connection = pool_.borrow();
    Transaction transaction(*connection, true);
    Put done;
    Statement old(*connection, "SELECT uid FROM documents WHERE space = ? AND id = ?");
    if (old.add(document.space).add(document.id).step()) {
      done.replaced = old.text(0);
    }
    done.exists = !done.replaced.empty() && if_exists == IfExists::fail;
    if (done.exists) {
      return done;
    }
    erase_contents(*connection, {done.replaced});
    Statement insert(*connection, "INSERT OR REPLACE INTO documents VALUES (?,?,?,?,?,?,?,?,?,?)");
    insert.add(document.space).add(document.id).add(document.uid).add(document.created);
    insert.add(static_cast<int64_t>(document.tokens)).add(json::serialize(document.metadata));
    insert.add(json::serialize(document.options)).add(document.header).add(document.fingerprint);
    document.embedding.empty() ? insert.add_null() : insert.add(Blob{vector_bytes(document.embedding)});
    insert.step();
    Statement contents(*connection, "INSERT INTO contents VALUES (?,?,?)");
    contents.add(document.uid).add(document.text).add(Blob{ids_bytes(document.token_ids)}).step();
    changed(*connection, document.space);
    transaction.commit();
    return done;
  }

  std::optional<Document> get(const std::string& space, const std::string& id) override {
    const auto connection = pool_.borrow();
    Statement row(
        *connection,
        fmt::format(
            "SELECT {}, text, token_ids FROM documents JOIN contents USING (uid) WHERE space = ? AND id = ?", columns));
    return row.add(space).add(id).step() ? std::optional(read_row(row, true, true)) : std::nullopt;
  }

  Page list(const std::string& space, const std::string& after, size_t limit, const Filter& filter) override {
    const auto connection = pool_.borrow();
    Where which = where(space, {}, filter);
    which.values.emplace_back(after);
    which.values.emplace_back(static_cast<int64_t>(std::min<size_t>(limit, INT32_MAX)) + 1);
    Statement row(
        *connection,
        fmt::format("SELECT {} FROM documents WHERE {} AND id > ? ORDER BY id LIMIT ?", columns, which.sql));
    row.add(which.values);
    Page page;
    while (row.step()) {
      page.documents.push_back(read_row(row, false, false));
    }
    page.more = page.documents.size() > limit;
    page.documents.resize(std::min(limit, page.documents.size()));
    return page;
  }

  std::vector<Namespace> namespaces() override {
    const auto connection = pool_.borrow();
    Statement row(
        *connection,
        "SELECT space, count(*), sum(tokens), version FROM documents JOIN spaces USING (space) GROUP BY space");
    std::vector<Namespace> all;
    while (row.step()) {
      all.push_back(
          {row.text(0),
           static_cast<uint64_t>(row.number(1)),
           static_cast<uint64_t>(row.number(2)),
           static_cast<uint64_t>(row.number(3))});
    }
    return all;
  }

  Selection select(const Selector& selector) override {
    const auto connection = pool_.borrow();
    Transaction transaction(*connection, false);
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
    Transaction transaction(*connection, true);
    const Where which = where(space, ids, filter);
    std::vector<std::string> uids;
    {
      Statement row(*connection, "DELETE FROM documents WHERE " + which.sql + " RETURNING uid");
      row.add(which.values);
      while (row.step()) {
        uids.push_back(row.text(0));
      }
    }
    if (!uids.empty()) {
      erase_contents(*connection, uids);
      changed(*connection, space);
    }
    transaction.commit();
    return uids;
  }

  uint64_t version(const std::string& space) override {
    return version(*pool_.borrow(), space);
  }

  std::vector<bool> known(const std::vector<std::string>& uids) override {
    const auto connection = pool_.borrow();
    std::vector<bool> known;
    for (const std::string& uid : uids) {
      Statement row(*connection, "SELECT 1 FROM documents WHERE uid = ?");
      known.push_back(row.add(uid).step());
    }
    return known;
  }

 private:
  static void
  select_in(const Connection& connection, const std::string& space, const Selector& selector, std::vector<Hit>& hits) {
    const bool ranked = !selector.embedding.empty();
    Where which = where(space, selector.ids, selector.filter);
    std::string sql = fmt::format(
        "SELECT {}, {}, {} FROM documents {} WHERE {}",
        columns,
        selector.contents ? "text, token_ids" : "NULL, NULL",
        ranked ? "1 - vec_distance_cosine(embedding, ?) AS similarity" : "0",
        selector.contents ? "JOIN contents USING (uid)" : "",
        which.sql);
    if (ranked) {
      sql += " AND length(embedding) = ?";
      which.values.emplace_back(static_cast<int64_t>(selector.embedding.size() * sizeof(float)));
    }
    if (selector.top > 0) {
      sql += " ORDER BY similarity DESC, id LIMIT ?";
      which.values.emplace_back(static_cast<int64_t>(std::min<size_t>(selector.top, INT32_MAX)));
    }
    Statement row(connection, sql);
    if (ranked) {
      row.add(Blob{vector_bytes(selector.embedding)});
    }
    row.add(which.values);
    while (row.step()) {
      hits.push_back(
          {read_row(row, selector.contents, selector.contents), static_cast<float>(row.real(similarity_column))});
    }
  }

  static uint64_t version(const Connection& connection, const std::string& space) {
    Statement row(connection, "SELECT version FROM spaces WHERE space = ?");
    return row.add(space).step() ? static_cast<uint64_t>(row.number(0)) : 0;
  }

  static void changed(const Connection& connection, const std::string& space) {
    Statement(
        connection,
        "INSERT INTO spaces VALUES (?, (SELECT coalesce(max(version), 0) + 1 FROM spaces)) "
        "ON CONFLICT (space) DO UPDATE SET version = excluded.version")
        .add(space)
        .step();
  }

  static void erase_contents(const Connection& connection, const std::vector<std::string>& uids) {
    for (const std::string& uid : uids) {
      Statement(connection, "DELETE FROM contents WHERE uid = ?").add(uid).step();
    }
  }

  Pool<Connection> pool_;
};

} // namespace

std::unique_ptr<Records> open_sqlite(Address& address) {
  if (address.path.empty()) {
    fail(Kind::invalid, "[memory] sqlite: needs a file, as sqlite:/path");
  }
  make_folders_durably(std::filesystem::absolute(address.path).parent_path());
  return std::make_unique<SqliteRecords>(address.path, address.take_timeout(10'000));
}

} // namespace parallm
