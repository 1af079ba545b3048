#include "store/helpers.h"

#include <random>

namespace places {

using namespace parallm;
namespace fs = std::filesystem;

std::string new_space(const std::string& base) {
  static std::random_device random;
  return base + "." + std::to_string(random());
}

Document some_document(const std::string& space, const std::string& id) {
  Document document;
  document.space = space;
  document.id = id;
  document.tokens = 3;
  document.fingerprint = "f";
  document.text = "text of " + id;
  document.token_ids = {1, 2, 3};
  return document;
}

void check_same(const Document& found, const Document& expected) {
  CHECK(found.space == expected.space);
  CHECK(found.id == expected.id);
  CHECK(found.uid == expected.uid);
  CHECK(found.created == expected.created);
  CHECK(found.tokens == expected.tokens);
  CHECK(found.metadata == expected.metadata);
  CHECK(found.options == expected.options);
  CHECK(found.header == expected.header);
  CHECK(found.fingerprint == expected.fingerprint);
}

std::string bytes_of(const FoundTensors& found) {
  REQUIRE(found.state == FoundTensors::State::present);
  return std::string(found.file->text(0, found.file->size()));
}

Namespace space_of(Store& store, const std::string& name) {
  for (const Namespace& space : store.namespaces()) {
    if (space.name == name) {
      return space;
    }
  }
  return {};
}

std::set<std::string> ids_of(const Selection& selection) {
  std::set<std::string> ids;
  for (const Hit& hit : selection.hits) {
    ids.insert(hit.document.id);
  }
  return ids;
}

fs::path tensor_file(const Place& place, const std::string& uid, size_t size) {
  for (const auto& entry : fs::directory_iterator(place.tensors() / uid.substr(0, 2) / uid)) {
    if (entry.file_size() == size) {
      return entry.path();
    }
  }
  FAIL("no tensors of ", uid);
  return {};
}

} // namespace places
