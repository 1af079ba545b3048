// Steps that a server makes before its first request, so that no request waits
// for what a device does once: MLX compiles a GPU's kernels when they are first
// met. kernels/cuda's take one or two seconds each, at every start. MLX's own quantized matmuls, for what those don't
// do, take most of a minute each, once: MLX keeps them on the disk. Engine thread only.
#pragma once

#include "engine/engine.h"

namespace parallm {

/** Reads prompts and generates tokens through `runner`, alone and with all
 * rows, with every kind of sampling. It writes over the KV blocks from 0 on:
 * before anything else is in them. */
void warm_up(Runner& runner, const EngineOptions& options);

} // namespace parallm
