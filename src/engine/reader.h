// Reads a text into memories: a prefill through the model, in windows, whose
// keys and values are kept. A step at a time, so that others run between.
// Engine thread only.
#pragma once

#include "kv/recall.h"
#include "models/model.h"

namespace parallm {

struct ReadHow {
  int stride = 512; // new tokens of each window after the first
  int max_length = 3072; // tokens of a window: the context that they are read in
  int chunk = 256; // tokens of a step
  std::vector<int32_t> dropped; // special tokens: read, not kept
  int dropped_first = 0; // leading tokens that are read and not kept (a header)
  bool coded = false; // keep keys and values in codes of 8 bits (cpu::RecallRows)
};

class Reader {
 public:
  /** Errors: invalid, where nothing would be kept, stride or max_length are out of range (`param` names the field), or
   * the model takes no memories. */
  Reader(Model& model, mx::Dtype kv_dtype, std::vector<int32_t> tokens, ReadHow how);

  /** Reads on; the memory once all is read. */
  std::shared_ptr<const Memory> step();
  int done() const {
    return kept_;
  }

 private:
  bool keeps_token(size_t i) const;
  void begin_window();
  std::shared_ptr<const Memory> finish();

  Model& model_;
  KVOptions kv_;
  std::vector<int32_t> tokens_;
  ReadHow how_;
  std::unique_ptr<RecordingCaches> caches_;
  int window_ = 0; // its first token
  int at_ = 0; // tokens of it that are read
  int kept_ = 0; // tokens whose keys are kept
  std::vector<std::vector<MemoryLayer>> parts_; // by layer
};

} // namespace parallm
