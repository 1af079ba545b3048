// The hub's HTTP API: a revision's commit and files, one file's metadata, and what its refusals mean for the user.
// The caller's thread.
//
//   GET  /api/models/ORG/NAME/revision/REVISION?blobs=true   {"sha", "siblings": [{"rfilename", "size", "blobId",
//                                                            "lfs": {"sha256", "size"}}]}
//   HEAD /ORG/NAME/resolve/COMMIT/FILE                       X-Linked-Etag or ETag, X-Linked-Size or Content-Length
//   GET  /ORG/NAME/resolve/COMMIT/FILE                       the content, or a redirect to where it is
#pragma once

#include "hub/http.h"
#include "hub/hub.h"
#include "hub/names.h"
#include "hub/state.h"

#include <string>
#include <vector>

namespace parallm {

struct Listing {
  std::string commit;
  std::vector<HubFile> files;
};

Question listing_question(const HubOptions& options, const HubName& name);
Question file_question(const HubOptions& options, const HubName& name, const std::string& commit, const HubFile& file);

/** Errors: invalid, where it is not what the hub answers or a file's name leads out of its folder. */
Listing read_listing(const std::string& body, const HubName& name);

/** Etag and size of a file that the listing gives none for, as some mirrors do. */
void complete(HubFile& file, const Reply& head, const HubName& name);

/** Asks again, after a pause that grows or that the hub asks for, while that can help; at most `tries` times. */
Reply ask_patiently(Http& http, const Question& question, int tries, FetchState& state);

/** Whether to try again after the failure number `failures`; waits before it says yes. */
bool worth_another_try(const Reply& reply, int failures, int tries, const std::string& what, FetchState& state);

/** An answer that is no success, in words. `file` may be empty. */
[[noreturn]] void
explain(const Reply& reply, const HubOptions& options, const HubName& name, const std::string& file = "");

/** "403 Forbidden words of the server" or why nothing came. */
std::string reason(const Reply& reply);

} // namespace parallm
