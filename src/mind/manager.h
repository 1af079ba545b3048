// Extended Mind's memories as users see them: documents in namespaces, which a
// model reads once and requests then attend to. Documents lie in a store
// (memory/store.h), with the keys and values that this model made of them; a
// document that another model read, or none, is read when it is first asked for.
// Those used last are held in RAM, at most MemoryOptions::ram_bytes of them, and
// what requests have of them, joined, at most twice that.
//
// A namespace is the access boundary: whoever asks names it. A request keeps
// the versions that it was given, whatever is replaced or erased meanwhile.
// Thread-safe; calls block, for the store and, where something is read, for the
// engine. No tensor is seen here.
#pragma once

#include "base/lru.h"
#include "memory/store.h"
#include "mind/encoder.h"
#include "mind/jobs.h"
#include "text/tokenizer.h"

#include <atomic>
#include <list>
#include <set>

namespace parallm {

struct MemoryOptions {
  std::string store; // its address: docs/memory.md; empty: default_memory_store()
  size_t ram_bytes = 0; // of keys and values; one request's documents may not take more. 0: an eighth of what is free
  size_t document_tokens = 1 << 20; // most of one document
};

/** How documents are read. */
struct ReadOptions {
  bool bos = true; // the model's begin token first, where it has one; it is not kept
  std::string header; // read before the text, not kept: short texts are understood better behind one; at most 1,024
                      // tokens, and fewer than max_length
  int stride = 0; // new tokens of each window of a long text after the first; 0: 512, or max_length if that is less
  int max_length = 0; // tokens of a window: the context that they are read in; 0: 3072, or the model's if that is less
};

struct NewDocument {
  std::string id; // empty: one is made
  std::optional<std::string> text; // valid UTF-8; or else the ids
  std::vector<int32_t> ids;
  json::object metadata = {};
};

struct AddDocuments {
  std::string space; // the namespace
  std::vector<NewDocument> documents;
  ReadOptions how = {};
  bool pack = false; // short documents are read one behind another, each one's neighbours being its context
  IfExists if_exists = IfExists::replace;
};

/** Which memories a request has. */
struct RecallDocuments {
  std::vector<std::string> spaces;
  std::vector<std::string> ids; // empty: all; each must be in one of the namespaces at least
  Filter filter;
  std::vector<NewDocument> inlined; // read for this request, after the others, and kept in RAM only
  int most = 0; // documents: the most similar to the prompt; 0: all
  std::vector<int32_t> prompt; // for `most`
  bool cited = false; // the request's answer is to be cited (citations.h)
  const std::atomic<bool>* over = nullptr; // true: nobody waits for it any more, so that nothing is read on
  std::string spaces_field = "memory.namespaces", ids_field = "memory.ids"; // what errors call them
};

/** A sentence of a document, or a piece of one that is long. */
struct Passage {
  int begin = 0, end = 0; // memories
  TextSpan place; // in the text, in characters, without blanks at its ends
  size_t byte = 0, bytes = 0; // the same in bytes
};

/** A document's text, where in it each memory's token stands, and its passages, which have all memories between them:
 * make_words (citations.h). */
struct Words {
  std::string text;
  std::vector<TextSpan> spans;
  std::vector<Passage> passages;
};

/** A document among a request's memories. */
struct RecalledDocument {
  std::string space; // empty: inlined
  std::string id;
  int begin = 0; // its first memory, counted through all of the request's
  int tokens = 0;
  std::shared_ptr<const Words> words; // where citations were asked for
};

/** A request's memories, as they were when it asked. */
struct MemoryView {
  Recall recall; // for Request::recall; none: nothing was found
  std::vector<RecalledDocument> documents;
  int tokens = 0;
};

/** A document that was found by its similarity to a text. */
struct FoundDocument {
  Document document; // with its text
  std::optional<float> similarity; // of vectors, -1 to 1; none where another model made the document's
};

struct MemoryStats {
  size_t ram_bytes = 0, ram_limit = 0; // of documents, on the shelf
  size_t ram_documents = 0;
  size_t joined_bytes = 0; // beside these, of what requests have or had lately; at most twice the limit
  size_t jobs = 0; // that have not ended
  uint64_t reads = 0, read_tokens = 0; // documents that the model read, and their tokens
  uint64_t loads = 0; // documents whose tensors came from the disk
  uint64_t views = 0, view_tokens = 0; // requests with memories, and these
};

class MemoryManager {
 public:
  /** `tokenizer` must outlive it; `bos`: -1 for none. */
  MemoryManager(
      std::unique_ptr<MemoryEncoder> encoder,
      const Tokenizer& tokenizer,
      int32_t bos,
      std::unique_ptr<Store> store,
      MemoryOptions options);
  ~MemoryManager(); // stops

  /** Ends what is being read, jobs and requests' documents, with unavailable, and reads no more. */
  void stop();

  /** Checks and tokenizes all, then reads one after another on a thread of its own: each is there, whole, once it is in
   * JobState::documents. Gives the job's id; `ended` is called when it ends. Errors: invalid, naming the field
   * ("documents[3].text"); too_large; conflict, with IfExists::fail; busy. */
  std::string submit(AddDocuments add, Jobs::Ended ended = {});
  /** The same, and waits. Errors: also the job's. */
  std::vector<AddedDocument> add(AddDocuments add);
  /** One text of ids, which are read as they are. The count of memories. */
  int add_memories(
      const std::string& space,
      const std::string& id,
      std::vector<int32_t> tokens,
      const ReadOptions& how = {.bos = false});

  /** Errors: invalid, naming the field; not_found, naming the id; too_large, where they don't fit into ram_bytes; busy,
   * where they don't fit beside those of running requests; conflict, where a document can't be read again: ids of
   * another tokenizer; unavailable, of the store; timeout, where it is over before. */
  MemoryView recall(const RecallDocuments& wanted, const RecallHow& how = {});
  /** All of a namespace, or these ids. */
  Recall recall(const std::string& space, const std::vector<std::string>& ids = {}, const RecallHow& how = {});

  /** The documents most similar to a text, by vectors of the model's own values. Errors: not_found, of a namespace that
   * never held one. */
  std::vector<FoundDocument>
  query(const std::vector<std::string>& spaces, const Filter& filter, const std::vector<int32_t>& ids, int top);

  Store& store() {
    return *store_;
  }
  Jobs& jobs() {
    return jobs_;
  }
  int layers() const {
    return encoder_->layers();
  }
  const Tokenizer& tokenizer() const {
    return tokenizer_;
  }
  const std::string& fingerprint() const {
    return fingerprint_;
  }
  MemoryStats stats() const;

 private:
  struct Planned; // a document with its ids, before it is read
  struct Header; // what is read before each document of a request
  class Turn;
  struct Held { // in RAM
    std::shared_ptr<const Memory> memory;
    size_t bytes = 0;
    std::shared_ptr<const Words> words; // once asked for
  };
  struct Joined { // documents that requests share
    std::string name;
    std::weak_ptr<const Memories> memories;
    std::shared_ptr<const Memories> kept; // while no request has it; null: no longer
    size_t bytes = 0;
  };

  ReadOptions completed(ReadOptions how) const;
  std::vector<Planned> plan(const AddDocuments& add) const;
  Header header_of(const ReadOptions& how) const;
  Planned plan_one(const NewDocument& document, const ReadOptions& how, const Header& header, const std::string& field)
      const;
  bool has_bos(const Planned& planned) const;
  Reading reading(const Planned& planned) const;
  int64_t read_tokens(const Planned& planned) const; // reading(planned).ids.size()
  void go_on(const std::atomic<bool>* over = nullptr) const;
  void read_all(std::vector<Planned>& plans, const AddDocuments& add, const Jobs::Progress& progress);
  std::shared_ptr<const Memory> read(const Planned& planned, const std::function<void(int)>& progress);
  AddedDocument keep(const Planned& planned, const AddDocuments& add, std::shared_ptr<const Memory> memory);

  Planned again(const Document& document) const;
  Held held(const Document& version, const std::atomic<bool>* over);
  Held held_inlined(const Planned& planned, const std::atomic<bool>* over);
  static std::string inline_name(const Planned& planned);
  Document with_contents(const Document& version);
  std::optional<Held> on_shelf(const std::string& name);
  void shelve(const std::string& name, const Held& held);
  MemoryView recall_once(const RecallDocuments& wanted, const RecallHow& how);
  std::vector<Document> select(const RecallDocuments& wanted);
  std::vector<TextSpan> spans_of(const Planned& planned) const;
  void check_how(const RecallHow& how) const;
  std::vector<float>
  embedding_of(const std::vector<int32_t>& ids, const std::string& field, const std::atomic<bool>* over);
  std::vector<int32_t> kept(const std::vector<int32_t>& ids) const;
  Recall make_recall(
      const std::string& names,
      std::vector<std::shared_ptr<const Memory>> parts,
      size_t bytes,
      RecallHow how,
      bool cited);
  std::shared_ptr<const std::vector<float>>
  background_of(const std::string& key, std::shared_ptr<const Memories> memories, const RecallHow& how);
  std::shared_ptr<const Memories> find_joined(const std::string& names) REQUIRES(mutex_);
  void make_room(size_t bytes) REQUIRES(mutex_);
  size_t joined_bytes() const REQUIRES(mutex_);

  std::unique_ptr<MemoryEncoder> encoder_;
  const Tokenizer& tokenizer_;
  const int32_t bos_;
  const std::unique_ptr<Store> store_;
  const MemoryOptions options_;
  const std::string fingerprint_; // of the model
  const std::string vocabulary_; // of the tokenizer
  std::vector<int32_t> special_;

  mutable Mutex mutex_;
  Lru<Held> shelf_ GUARDED_BY(mutex_); // by bytes
  std::list<Joined> joined_ GUARDED_BY(mutex_); // last used first
  Lru<std::shared_ptr<const std::vector<float>>> backgrounds_ GUARDED_BY(mutex_);
  std::set<std::string> turns_ GUARDED_BY(mutex_); // documents that someone makes ready
  std::condition_variable turn_;
  MemoryStats stats_ GUARDED_BY(mutex_);
  std::atomic<bool> stopping_ = false;
  Jobs jobs_; // the last: its thread uses the others
};

} // namespace parallm
