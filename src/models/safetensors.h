// Safetensors files (huggingface/safetensors): 8 bytes, the header's length N, little-endian; N bytes of JSON, an
// object of name to {"dtype", "shape", "data_offsets": [begin, end]} and maybe "__metadata__"; then the data, to which
// the offsets are relative. Engine thread only (it makes MLX arrays).
#pragma once

#include <mlx/mlx.h>

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace parallm {
namespace mx = mlx::core;

/** Tensors by name. On a CPU they are pieces of the mapped file (models/mapped_array.h), so that loading takes no
 * memory beside the page cache; elsewhere they are read when they are used. 8-bit floats come as uint8. Errors:
 * invalid, for a file that is damaged or cut off, naming it. */
std::unordered_map<std::string, mx::array> read_safetensors(const std::string& path);

struct NamedArray {
  std::string name;
  std::optional<mx::array> array; // may be unevaluated; written, it is gone
};

/** Where each tensor's bytes go in a file, and its beginning. Greater elements first, so that each tensor is aligned
 * and a reader can map it. */
struct SafetensorsLayout {
  std::vector<size_t> offsets;
  std::string head;
};
SafetensorsLayout lay_out_safetensors(const std::vector<NamedArray>& tensors);

/** Writes the tensors one at a time: each is computed, written and let go, so that memory holds one of them. `written`
 * is told each one's bytes. Errors: invalid, where the disk is full or the folder isn't there. */
void write_safetensors(
    const std::string& path,
    std::vector<NamedArray> tensors,
    const std::function<void(size_t)>& written = {});

} // namespace parallm
