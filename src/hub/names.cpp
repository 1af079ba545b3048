#include "hub/names.h"

#include "base/error.h"
#include "hub/hub.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <regex>

namespace parallm {

namespace {

bool repo_part(std::string_view part) {
  const auto allowed = [](unsigned char c) {
    return c < 128 && (std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.');
  };
  const auto edge = [](char c) { return c == '-' || c == '.'; };
  return !part.empty() && part.size() <= 96 && std::all_of(part.begin(), part.end(), allowed) && !edge(part.front()) &&
      !edge(part.back()) && part.find("..") == part.npos && part.find("--") == part.npos;
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

bool is_gguf(std::string_view path) {
  return lower(path).ends_with(".gguf");
}

std::string_view file_name(std::string_view path) {
  return path.substr(path.rfind('/') + 1); // npos + 1 is 0
}

/** "Q4_K_M" is in "model-q4_k_m.gguf", and in no "iq4_k_m": what stands before and after is no letter or digit. */
bool has_tag(std::string_view path, std::string_view tag) {
  const std::string name = lower(file_name(path));
  const std::string wanted = lower(tag);
  const auto inside = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  for (size_t at = name.find(wanted); at != name.npos; at = name.find(wanted, at + 1)) {
    const size_t end = at + wanted.size();
    if ((at == 0 || !inside(name[at - 1])) && (end == name.size() || !inside(name[end]))) {
      return true;
    }
  }
  return false;
}

/** Folders of a repository that are part of the model: sentence-transformers' modules ("1_Pooling"), more templates.
 * Others hold the same weights again ("original", "onnx", "openvino") or what training left. */
bool wanted_folder(std::string_view folder) {
  static const std::regex module("[0-9]+_[A-Za-z]+");
  return folder.empty() || folder == "additional_chat_templates" ||
      std::regex_match(folder.begin(), folder.end(), module);
}

bool wanted_text(std::string_view name) {
  static constexpr std::array endings = {".json", ".jinja", ".tiktoken"};
  static constexpr std::array names = {
      "tokenizer.model", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "merges.txt"};
  return std::any_of(endings.begin(), endings.end(), [&](const char* e) { return name.ends_with(e); }) ||
      std::find(names.begin(), names.end(), name) != names.end();
}

/** "model.fp16.safetensors" beside "model.safetensors": the same weights in another type. */
bool is_variant(std::string_view name) {
  static const std::regex variant("model\\.[^.]+\\.safetensors");
  return std::regex_match(name.begin(), name.end(), variant);
}

/** The safetensors of a repository's top folder that the loader opens. */
std::vector<HubFile> weights(const std::vector<HubFile>& files) {
  std::vector<HubFile> found, named_model, others;
  for (const HubFile& file : files) {
    if (file.path.find('/') == file.path.npos && file.path.ends_with(".safetensors")) {
      found.push_back(file);
    }
  }
  const auto whole =
      std::find_if(found.begin(), found.end(), [](const HubFile& f) { return f.path == "model.safetensors"; });
  for (const HubFile& file : found) {
    if (file.path.starts_with("model") && !(whole != found.end() && is_variant(file.path))) {
      named_model.push_back(file);
    } else if (!file.path.starts_with("consolidated")) {
      others.push_back(file);
    }
  }
  return !named_model.empty() ? named_model : !others.empty() ? others : found;
}

const HubFile& the_gguf(const HubName& name, const std::vector<HubFile>& files) {
  std::vector<std::string> paths, all;
  for (const HubFile& file : files) {
    paths.push_back(file.path);
    if (is_gguf(file.path)) {
      all.push_back(file.path);
    }
  }
  const std::vector<std::string> found = matching_gguf(name, paths);
  const std::string what = name.tag.empty() ? name.file : "with the tag " + name.tag;
  if (found.empty()) {
    fail(
        Kind::not_found,
        "[hub] {} has no GGUF file {} at {}; it has {}",
        name.repo,
        what,
        name.revision,
        all.empty() ? "none" : fmt::format("{}", fmt::join(all, ", ")));
  }
  if (found.size() > 1) {
    fail(
        Kind::invalid,
        "[hub] {} has more than one GGUF file {}; name one, such as {}/{}; got {}",
        name.repo,
        what,
        name.repo,
        found.front(),
        fmt::join(found, ", "));
  }
  return *std::find_if(files.begin(), files.end(), [&](const HubFile& file) { return file.path == found.front(); });
}

[[noreturn]] void fail_without_weights(const HubName& name, const std::vector<HubFile>& files) {
  std::vector<std::string> gguf, pickles;
  for (const HubFile& file : files) {
    if (is_gguf(file.path)) {
      gguf.push_back(file.path);
    } else if (file.path.ends_with(".bin") || file.path.ends_with(".pt") || file.path.ends_with(".pth")) {
      pickles.push_back(file.path);
    }
  }
  if (!gguf.empty()) {
    fail(
        Kind::invalid,
        "[hub] {} has no safetensors; of its GGUF files one is named as {}/{}; it has {}",
        name.repo,
        name.repo,
        gguf.front(),
        fmt::join(gguf, ", "));
  }
  if (!pickles.empty()) {
    fail(
        Kind::invalid,
        "[hub] {} has no safetensors: its weights are pickles ({}), which can run code and are never opened; take a "
        "repository that has safetensors, such as one of mlx-community",
        name.repo,
        pickles.front());
  }
  fail(
      Kind::invalid,
      "[hub] {} is no model that can be loaded: it has no safetensors among {} files",
      name.repo,
      files.size());
}

} // namespace

std::optional<HubName> parse_hub_name(const std::string& name) {
  HubName parsed;
  std::string path = name;
  if (const size_t at = path.find('@'); at != path.npos) {
    parsed.revision = path.substr(at + 1);
    path.resize(at);
    if (!is_safe_path(parsed.revision)) {
      return {};
    }
  }
  if (const size_t colon = path.find(':'); colon != path.npos) {
    parsed.tag = path.substr(colon + 1);
    path.resize(colon);
    if (!repo_part(parsed.tag)) {
      return {};
    }
  }
  const size_t first = path.find('/');
  if (first == path.npos) {
    return {};
  }
  const size_t second = path.find('/', first + 1);
  const std::string repo_name = path.substr(first + 1, second == path.npos ? path.npos : second - first - 1);
  if (second != path.npos) {
    parsed.file = path.substr(second + 1);
    if (!is_gguf(parsed.file) || !is_safe_path(parsed.file) || !parsed.tag.empty()) {
      return {};
    }
  } else if (is_gguf(repo_name) || repo_name.ends_with(".safetensors")) {
    return {}; // a local file, mistyped
  }
  if (!repo_part(path.substr(0, first)) || !repo_part(repo_name) || repo_name.ends_with(".git")) {
    return {};
  }
  parsed.repo = path.substr(0, first) + '/' + repo_name;
  return parsed;
}

bool is_hub_name(const std::string& name) {
  return parse_hub_name(name).has_value();
}

bool is_commit(std::string_view revision) {
  return revision.size() == 40 && revision.find_first_not_of("0123456789abcdef") == revision.npos;
}

bool is_safe_path(std::string_view path) {
  if (path.empty() || path.size() > 1000) {
    return false;
  }
  for (const unsigned char c : path) {
    if (c < 32 || c == 127 || c == '\\') {
      return false;
    }
  }
  for (size_t from = 0; from <= path.size();) {
    const size_t to = std::min(path.find('/', from), path.size());
    const std::string_view part = path.substr(from, to - from);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) {
      return false; // an empty first part is an absolute path
    }
    from = to + 1;
  }
  return true;
}

std::vector<std::string> matching_gguf(const HubName& name, const std::vector<std::string>& paths) {
  std::vector<std::string> found;
  for (const std::string& path : paths) {
    if (is_gguf(path) && (name.tag.empty() ? path == name.file : has_tag(path, name.tag))) {
      found.push_back(path);
    }
  }
  return found;
}

std::vector<HubFile> wanted_files(const HubName& name, const std::vector<HubFile>& files) {
  if (name.gguf()) {
    return {the_gguf(name, files)};
  }
  std::vector<HubFile> wanted = weights(files);
  if (wanted.empty()) {
    fail_without_weights(name, files);
  }
  for (const HubFile& file : files) {
    const std::string_view path = file.path;
    const size_t slash = path.rfind('/');
    const std::string_view folder = slash == path.npos ? "" : path.substr(0, slash);
    const bool module_weights = !folder.empty() && path.ends_with(".safetensors");
    if (wanted_folder(folder) && (wanted_text(file_name(path)) || module_weights)) {
      wanted.push_back(file);
    }
  }
  return wanted;
}

} // namespace parallm
