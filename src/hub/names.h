// Names: of models on the hub, of their files, and which files a model needs. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace parallm {

struct HubName {
  std::string repo; // "ORG/NAME"
  std::string revision = "main";
  std::string file; // one GGUF file; empty: the folder, or what `tag` picks
  std::string tag; // of a GGUF file; empty: none

  bool gguf() const {
    return !file.empty() || !tag.empty();
  }
};

/** Nothing where `name` is of no shape that hub.h lists. */
std::optional<HubName> parse_hub_name(const std::string& name);

/** A full commit hash, which never means anything else later. */
bool is_commit(std::string_view revision);

/** A file's name inside a repository that stays inside any folder it is put into. */
bool is_safe_path(std::string_view path);

struct HubFile {
  std::string path;
  std::string etag; // SHA-256 of LFS files, git's SHA-1 of others; empty: not known yet
  std::optional<uint64_t> size;
};

/** Of a repository's files those that loading takes: safetensors, JSON, tokenizers and templates. Never pickles or
 * code; of formats that hold the same weights one. With a file or tag: that GGUF file alone. Errors: invalid, naming
 * what is there instead; not_found for a GGUF file. */
std::vector<HubFile> wanted_files(const HubName& name, const std::vector<HubFile>& files);

/** Of paths the GGUF files with the name's file or tag. */
std::vector<std::string> matching_gguf(const HubName& name, const std::vector<std::string>& paths);

} // namespace parallm
