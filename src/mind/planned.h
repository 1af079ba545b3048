// A document with its ids, before a model has read it. Private to this folder.
#pragma once

#include "mind/manager.h"

namespace parallm {

struct MemoryManager::Header {
  std::string text;
  std::vector<int32_t> ids;
};

struct MemoryManager::Planned {
  Document document; // without what reading makes of it
  std::vector<int32_t> before; // read before it, after the begin token, and not kept
  ReadOptions how;
  bool given_ids = false; // it came as ids, the text being made of them
  bool first_of_pack = true; // else the one before it in the list is what stands last in `before`
};

} // namespace parallm
