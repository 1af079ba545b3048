// Extended Mind (arXiv 2406.02332) for library users: texts that a model reads
// once and whose keys and values every later request may attend to. They lie in
// RAM and end with this object. The model must have been loaded with
// LoadOptions::extended_mind. Thread-safe; a text is read between the engine's
// steps, so others are served meanwhile.
#pragma once

#include "kv/recall_how.h"
#include "library/mlx_parallm.h"

namespace parallm {

struct ReadOptions {
  int stride = 512; // new tokens of each window of a long text after the first
  int max_length = 3072; // tokens of a window
  std::vector<int32_t> dropped; // special tokens: read, no memories
};

class MemoryManager {
 public:
  /** The model must outlive it. */
  explicit MemoryManager(LanguageModel& model);
  ~MemoryManager();

  /** Reads the tokens; a text of this id in this namespace is replaced once it is done. The count of memories. Errors:
   * invalid, for tokens out of range, only special ones, or a model that takes no memories. */
  int add_memories(
      const std::string& space,
      const std::string& id,
      std::vector<int32_t> tokens,
      const ReadOptions& = {});

  /** Ids in a namespace, sorted. */
  std::vector<std::string> ids(const std::string& space) const;

  /** False where there is none. Requests that have it go on with it. */
  bool erase(const std::string& space, const std::string& id);

  /** For Request::recall: these texts as they are now; `ids` empty: all of the namespace. Errors: not_found, naming the
   * id; invalid (`param` names the option). */
  Recall recall(const std::string& space, const std::vector<std::string>& ids, const RecallHow& how = {}) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

} // namespace parallm
