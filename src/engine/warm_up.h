// Steps that a server makes before its first request, so that no request waits
// for what a device does once: MLX compiles a GPU's kernels when they are first
// met. On an H100 that nothing ran on before, all those of a 4-bit model take
// six minutes of one core; MLX keeps them on the disk, and then it is seconds. Engine thread only.
#pragma once

#include "engine/engine.h"

namespace parallm {

/** Reads prompts and generates tokens through `runner`, alone and with all
 * rows, with every kind of sampling. It writes over the KV blocks from 0 on:
 * before anything else is in them. */
void warm_up(Runner& runner, const EngineOptions& options);

} // namespace parallm
