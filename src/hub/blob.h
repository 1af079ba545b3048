// One file's content into the cache: under its lock, going on from what an earlier try left, checked against its etag,
// put in place by a rename. The caller's thread.
#pragma once

#include "hub/api.h"
#include "hub/cache.h"

#include <string>

namespace parallm {

struct BlobSource {
  const HubOptions& options;
  const HubName& name;
  const std::string& commit;
};

/** Returns early, without the blob, only where the state is stopped. Errors: as fetch_model's. */
void fetch_blob(const BlobSource& source, const Cache& cache, const HubFile& file, Http& http, FetchState& state);

} // namespace parallm
