// What a backend of the store does: keep records. A new backend is one class of this kind, a row of the table in
// open.cpp, and passes tests/store/contract_test.cpp. Store has checked every argument (names, vectors, filters)
// before. Thread-safe; calls block. Errors as store.h says.
#pragma once

#include "memory/store.h"

namespace parallm {

class Records {
 public:
  virtual ~Records() = default;

  struct Put {
    bool exists = false; // the id is there, and IfExists::fail: nothing was done
    std::string replaced; // uid of the version that went; empty: none
  };
  /** Atomic and durable. */
  virtual Put put(const Document& document, IfExists if_exists) = 0;
  virtual std::optional<Document> get(const std::string& space, const std::string& id) = 0;
  virtual Page list(const std::string& space, const std::string& after, size_t limit, const Filter& filter) = 0;
  virtual std::vector<Namespace> namespaces() = 0;
  virtual Selection select(const Selector& selector) = 0;
  /** The uids of what went. */
  virtual std::vector<std::string>
  erase(const std::string& space, const std::vector<std::string>& ids, const Filter& filter) = 0;
  virtual uint64_t version(const std::string& space) = 0;
  /** Whether a version of this uid is there, in any namespace. */
  virtual std::vector<bool> known(const std::vector<std::string>& uids) = 0;
};

} // namespace parallm
