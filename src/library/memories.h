// Extended Mind (arXiv 2406.02332) for library users: texts that a model reads
// once and whose keys and values requests may attend to. mind/manager.h has what
// can be done with them.
#pragma once

#include "library/mlx_parallm.h"
#include "mind/manager.h"

namespace parallm {

/** Memories of a model that was loaded with LoadOptions::extended_mind, and that must outlive them. Errors: invalid
 * (`extended_mind`, or the store's address), unavailable (the store). */
std::unique_ptr<MemoryManager> open_memories(LanguageModel& model, MemoryOptions options);

/** Where memories are kept unless told otherwise: $XDG_DATA_HOME/mlx_parallm/memories, or under ~/.local/share. */
std::string default_memory_store();

} // namespace parallm
