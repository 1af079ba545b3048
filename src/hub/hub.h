// Models of the Hugging Face hub, by name. Files lie in the cache that the Python package huggingface_hub uses, in its
// layout and under its locks, so that what either of the two downloaded is there for the other:
//
//   models--ORG--NAME/blobs/<etag>                the content, once; etag: SHA-256, of small files git's SHA-1
//   models--ORG--NAME/blobs/<etag>.incomplete     its beginning, which the next try goes on from
//   models--ORG--NAME/refs/<revision>             the commit that a branch or tag was last seen at
//   models--ORG--NAME/snapshots/<commit>/<file>   links to blobs
//   .locks/models--ORG--NAME/<etag>.lock          flock'ed by who writes the blob
//
// Free functions, any thread; processes may fetch the same model at once. What a server says (commit, file names,
// sizes) is not trusted.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace parallm {

struct HubOptions {
  std::string endpoint = "https://huggingface.co"; // without a slash at the end
  std::string cache; // the folder of models--ORG--NAME
  std::string token; // empty: none. It goes to the endpoint's host alone
  std::string token_source; // where it came from, for messages: "HF_TOKEN"
  bool offline = false; // never ask the hub
  int parallel = 4; // files at once
  int tries = 5; // in a row without a new byte, of one file or question
};

/** What HF_ENDPOINT, HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_TOKEN, HUGGING_FACE_HUB_TOKEN,
 * HF_TOKEN_PATH, HF_HUB_DISABLE_IMPLICIT_TOKEN and HF_HUB_OFFLINE say, with huggingface_hub's meaning and defaults. */
HubOptions hub_environment();

struct FetchProgress {
  size_t files = 0; // that are not in the cache yet
  size_t files_done = 0;
  uint64_t bytes = 0; // of those files that are on the disk
  uint64_t found_bytes = 0; // of `bytes` what no download of this call brought: an earlier try's, another process's
  uint64_t total_bytes = 0;
  std::string warning; // a line that the user should see; empty in nearly every call
};

/** Called by fetch_model's own thread, some ten times a second while files come. */
using OnFetch = std::function<void(const FetchProgress&)>;

/** Whether it has the shape of a model on the hub:
 *    ORG/NAME[@REVISION]             the model's folder
 *    ORG/NAME/FILE.gguf[@REVISION]   one GGUF file of it
 *    ORG/NAME:TAG[@REVISION]         the one GGUF file whose name has this tag, such as Q4_K_M
 * REVISION is a branch, a tag or a commit; main where there is none. */
bool is_hub_name(const std::string& name);

/** Brings what is missing of the model's files and gives the local folder, or the path of the GGUF file. Without a
 * network where the revision is a commit whose snapshot is whole; with a warning where the hub can't be reached and the
 * cache has the revision. Errors: invalid (the name; nothing that can be loaded in it; content that is not what the hub
 * lists), not_found, unauthorized (401, 403: what to do is in the text), busy (429), unavailable (no network, the hub's
 * own failure, a full disk). */
std::string fetch_model(const std::string& name, const HubOptions& options, const OnFetch& on_fetch = {});

} // namespace parallm
