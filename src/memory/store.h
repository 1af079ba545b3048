// The store of memories: documents that a model has read, with one vector each for choosing among them, and the keys
// and values of that reading. It survives the process and may be shared by several servers; it knows no model and no
// tensor: keys and values are bytes to it.
//
// Two parts. Records (text, token ids, metadata, vector) lie in the backend that the URL names: files, SQLite,
// PostgreSQL, Redis, Neo4j. Tensors lie in a folder of this machine (tensors.h), whatever the backend: at 128 KiB a
// token for an 8B model they outgrow what a database takes in one value (PostgreSQL 1 GB, Redis 512 MB), a GPU makes
// them again faster than a database sends them, and they belong to the weights, which may differ between the servers of
// one store. So the tensors of a record may be absent on a machine that shares it: encode its tokens again and keep
// them by put_tensors.
//
// A version of a document never changes: putting the same id again makes a new one, with another `uid`. Who has
// selected versions keeps one consistent state of them, as long as it holds their tensors.
//
// A namespace is the access boundary: every call names its namespaces, and finds nothing of others.
//
// Thread-safe. Calls block (disk, network): not for the engine's thread. Errors, all of type Error: invalid (a name, a
// filter, a vector), conflict (the id is there), unavailable (the backend does not answer, or the disk is full; the
// next call connects again), internal (the backend answers nonsense). What is not there is an empty answer.
#pragma once

#include "base/json.h"
#include "memory/filter.h"
#include "memory/tensors.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

/** A version of a document. "Contents" are the text and the token ids, which may be long: listings and selections leave
 * them out unless asked. */
struct Document {
  std::string space; // its namespace
  std::string id; // within the namespace
  std::string uid; // this version's own name, 32 hex digits; put makes it
  int64_t created = 0; // of this version, seconds since 1970; put sets it
  uint64_t tokens = 0; // how many memories it has: what the encoder kept of token_ids
  json::object metadata; // flat: strings, numbers, booleans
  json::object options; // how it was read (stride, max_length, ...), for reading it again; the store only keeps it
  std::string header; // what was read before it and then dropped
  std::string fingerprint; // what encoded it first: the weights and all that changes the tensors
  std::vector<float> embedding; // empty, or of any length > 0; not a null vector. Compared by cosine.

  std::string text; // contents
  std::vector<int32_t> token_ids; // contents
};

struct Namespace {
  std::string name;
  uint64_t documents = 0;
  uint64_t tokens = 0;
  uint64_t version = 0;
};

struct Page {
  std::vector<Document> documents; // without contents and embedding
  bool more = false;
};

struct Selector {
  std::vector<std::string> spaces; // one at least, none twice
  std::vector<std::string> ids; // empty: all; an id that is in several of the namespaces is found in each
  Filter filter; // by metadata
  std::vector<float> embedding; // empty: no order. Documents with a vector of another length are passed over.
  size_t top = 0; // at most so many, the most similar first; 0: all. Needs an embedding.
  bool contents = false; // also text and token_ids
};

struct Hit {
  Document document; // with its embedding only when contents are asked for
  float similarity = 0; // cosine, -1..1; 0 without embedding
};

/** One state of all the namespaces asked for: no put or erase is half in it. */
struct Selection {
  std::vector<Hit> hits; // by similarity, then namespace and id; without embedding by namespace and id
  std::vector<uint64_t> versions; // of each of Selector::spaces, as version() says them
};

enum class IfExists { replace, fail };

class Records; // records.h: what a backend does

class Store {
 public:
  Store(std::unique_ptr<Records> records, Tensors tensors);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  /** Throws what put would say of the document itself; `where` stands before its fields' names. */
  static void check(const Document& document, const std::string& where = "");
  /** The same of what select is asked for. */
  static void check_spaces(const std::vector<std::string>& names, const std::string& field);
  static void check_ids(const std::vector<std::string>& names, const std::string& field);

  /** Whole or not at all, at once for everyone who asks from then on; it has reached the disk when this returns (of a
   * database: what its own settings promise). An older version of the id goes, with its tensors. `pieces`, joined, are
   * the tensors under the document's fingerprint; none: the document has no tensors yet. Gives the uid. */
  std::string put(Document document, const Pieces& pieces = {}, IfExists if_exists = IfExists::replace);

  /** With contents and embedding. */
  std::optional<Document> get(const std::string& space, const std::string& id);

  /** Documents of the namespace by id, bytewise, beginning after `after`. */
  Page list(const std::string& space, const std::string& after, size_t limit, const Filter& filter = {});

  /** All that hold a document, by name. */
  std::vector<Namespace> namespaces();

  Selection select(const Selector& selector);

  /** These ids (empty: all) that the filter takes, all at once. How many there were. */
  size_t erase(const std::string& space, const std::vector<std::string>& ids, const Filter& filter = {});

  /** Grows with each change of the namespace, also by other servers: equal answers mean that nothing changed between. 0
   * for one that never held anything. */
  uint64_t version(const std::string& space);

  /** The tensors of a version, made under this fingerprint; their SHA-256 is checked. Absent: never made here, or the
   * version has been erased. Altered: the bytes are not those that were written; it has been logged. */
  FoundTensors tensors(const std::string& uid, const std::string& fingerprint);

  /** Keeps tensors of a version that is there already, beside those of the fingerprint before. */
  void put_tensors(const std::string& uid, const std::string& fingerprint, const Pieces& pieces);

  /** Bytes of tensors on this machine's disk. */
  uint64_t tensor_bytes() const;

 private:
  void sweep_at_times();

  std::unique_ptr<Records> records_;
  Tensors tensors_;
  std::atomic<int64_t> swept_ = 0; // when, in seconds of the steady clock
};

/** files:/folder (also a plain path), faiss:/folder, sqlite:/file, postgresql://..., redis://..., neo4j://...;
 * docs/memory.md has their parameters. Connects once, so that a wrong address is found at start. Errors: invalid (no
 * such kind, or one that this build lacks the library of), unavailable. */
std::unique_ptr<Store> open_store(const std::string& url);

} // namespace parallm
