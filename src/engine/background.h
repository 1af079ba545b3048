// What memories get from prompts that have nothing to do with them: the first
// ones of a text and such get much of any query, so that attention's mass alone
// names no source, and mass above this background does. Engine thread only.
#pragma once

#include "kv/recall.h"
#include "models/model.h"

namespace parallm {

class Background {
 public:
  /** Of these memories, used in this way, in the row's own order. `probes`: some short prompts (four plain sentences
   * do), ids below the model's vocabulary. Errors: invalid, where there is none or an empty one. */
  Background(
      Model& model,
      mx::Dtype kv_dtype,
      std::shared_ptr<const Memories> memories,
      RecallHow how,
      std::vector<std::vector<int32_t>> probes);

  /** Reads on, some tokens; once all are read, [N]: each memory's mean mass (UsedMemory::mass) of a query. */
  std::optional<std::vector<float>> step();

 private:
  Model& model_;
  KVOptions kv_;
  std::shared_ptr<const Recalled> recalled_;
  std::vector<std::vector<int32_t>> probes_;
  std::unique_ptr<Caches> caches_;
  size_t probe_ = 0; // which one
  int at_ = 0; // tokens of it that are read
  int queries_ = 0;
  std::vector<double> sums_; // [N]
};

} // namespace parallm
