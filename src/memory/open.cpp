#include "base/error.h"
#include "memory/backends.h"

#include <cstdlib>

namespace parallm {

namespace {

namespace fs = std::filesystem;

/** A backend that was left out of this build (cmake/memory.cmake), and what it needs. */
template <const char* library>
std::unique_ptr<Records> not_built(Address& address) {
  fail(Kind::invalid, "[memory] this build has no {}: stores, since CMake found no {}", address.scheme, library);
}

#ifdef PARALLM_WITHOUT_FAISS
constexpr char faiss_library[] = "FAISS";
constexpr auto open_faiss_ = not_built<faiss_library>;
#else
constexpr auto open_faiss_ = open_faiss;
#endif
#ifdef PARALLM_WITHOUT_SQLITE
constexpr char sqlite_library[] = "SQLite and sqlite-vec";
constexpr auto open_sqlite_ = not_built<sqlite_library>;
#else
constexpr auto open_sqlite_ = open_sqlite;
#endif
#ifdef PARALLM_WITHOUT_POSTGRES
constexpr char postgres_library[] = "libpq";
constexpr auto open_postgres_ = not_built<postgres_library>;
#else
constexpr auto open_postgres_ = open_postgres;
#endif
#ifdef PARALLM_WITHOUT_REDIS
constexpr char redis_library[] = "hiredis";
constexpr auto open_redis_ = not_built<redis_library>;
#else
constexpr auto open_redis_ = open_redis;
#endif

struct Backend {
  const char* scheme;
  std::unique_ptr<Records> (*open)(Address&);
  const char* tensors; // where tensors lie: beside the path with this ending; null: in the cache
};

constexpr Backend backends[] = {
    {"files", open_files, "/tensors"},
    {"faiss", open_faiss_, "/tensors"},
    {"sqlite", open_sqlite_, ".tensors"},
    {"postgresql", open_postgres_, nullptr},
    {"postgres", open_postgres_, nullptr},
    {"redis", open_redis_, nullptr},
    {"neo4j", open_neo4j, nullptr},
    {"neo4j+s", open_neo4j, nullptr},
};

fs::path cache_folder() {
  if (const char* cache = std::getenv("MLX_PARALLM_CACHE"); cache != nullptr && *cache != 0) {
    return cache;
  }
  const char* home = std::getenv("HOME");
  return fs::path(home == nullptr ? "." : home) / ".cache" / "mlx_parallm";
}

/** For a folder's name: the address with what a path can't have as '_'. */
std::string folder_name(const Address& address) {
  std::string name = address.shown();
  for (char& c : name) {
    c = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-' ? c : '_';
  }
  return name;
}

} // namespace

std::unique_ptr<Store> open_store(const std::string& url) {
  Address address = parse_address(url);
  std::string known;
  for (const Backend& backend : backends) {
    if (address.scheme != backend.scheme) {
      known += (known.empty() ? "" : ", ") + std::string(backend.scheme);
      continue;
    }
    const std::string beside = backend.tensors == nullptr ? (cache_folder() / "memory" / folder_name(address)).string()
                                                          : address.path + backend.tensors;
    const fs::path tensors = address.take("tensors", beside);
    auto records = backend.open(address);
    if (!address.parameters.empty()) {
      fail(
          Kind::invalid, "[memory] a {}: store has no parameter {}", address.scheme, address.parameters.begin()->first);
    }
    return std::make_unique<Store>(std::move(records), Tensors(tensors));
  }
  fail(Kind::invalid, "[memory] a store is one of {}; got {}", known, address.scheme);
}

} // namespace parallm
