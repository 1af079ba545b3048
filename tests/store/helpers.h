// What the tests of stores share.
#pragma once

#include "memory/store.h"
#include "store/places.h"

#include <doctest/doctest.h>

#include <set>
#include <string>

/** `store` at the backend's place; the test case ends where there is none. */
#define OPEN_OR_RETURN(T)                                                         \
  if (T::place().url().empty()) {                                                 \
    MESSAGE("passed over: no server of this kind is here (see tools/stores.sh)"); \
    return;                                                                       \
  }                                                                               \
  const auto store = T::place().open()

#define CHECK_KIND(expression, wanted)                     \
  [&] {                                                    \
    try {                                                  \
      (void)(expression);                                  \
    } catch (const parallm::Error& error) {                \
      CHECK_MESSAGE(error.kind == (wanted), error.what()); \
      return;                                              \
    }                                                      \
    FAIL_CHECK(#expression " throws nothing");             \
  }()

namespace places {

/** A name that no other test uses, and no run before. */
std::string new_space(const std::string& base);

parallm::Document some_document(const std::string& space, const std::string& id);

/** All but contents and embedding. */
void check_same(const parallm::Document& found, const parallm::Document& expected);

std::string bytes_of(const parallm::FoundTensors& found);

/** What namespaces() says of it; zeros where nothing. */
parallm::Namespace space_of(parallm::Store& store, const std::string& name);

std::set<std::string> ids_of(const parallm::Selection& selection);

/** The file of so many bytes that holds tensors of this version. */
std::filesystem::path tensor_file(const Place& place, const std::string& uid, size_t size);

} // namespace places

TYPE_TO_STRING(places::Files);
TYPE_TO_STRING(places::Faiss);
TYPE_TO_STRING(places::Sqlite);
TYPE_TO_STRING(places::Postgres);
TYPE_TO_STRING(places::Redis);
TYPE_TO_STRING(places::Neo4j);
