#include "models/gguf_tensors.h"

#include "base/error.h"
#include "models/gguf_types.h"
#include "models/mapped_array.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <span>
#include <thread>

namespace parallm {

namespace {

/** Memory of a coming array, written before MLX sees it. */
template <typename T>
struct Blank {
  explicit Blank(size_t count)
      : data(mx::allocator::malloc(count * sizeof(T))), values(static_cast<T*>(data.buffer().raw_ptr())) {}

  mx::array array(mx::Shape shape, mx::Dtype dtype) {
    return mx::array(std::move(data), std::move(shape), dtype);
  }

  mx::allocator::Data data;
  T* values;
};

/** A tensor's rows in the file, in the wanted order. */
struct Rows {
  Rows(const GgufTensor& tensor, std::span<const int> order)
      : start(reinterpret_cast<const uint8_t*>(tensor.file->data()) + tensor.offset),
        width(tensor.shape.empty() ? 1 : tensor.shape.back()),
        bytes(width / tensor.type->weights * tensor.type->bytes),
        count(tensor.bytes / bytes),
        order(order) {
    check(order.empty() || order.size() == count, "gguf: a place for each row");
  }

  const uint8_t* operator[](size_t row) const {
    return start + (order.empty() ? row : size_t(order[row])) * bytes;
  }

  const uint8_t* start;
  size_t width; // weights of a row
  size_t bytes; // of a row
  size_t count;
  std::span<const int> order;
};

/** work(first, end) over all rows, spread over the machine's cores and a slab of the file at a time, whose pages are
 * dropped behind it: a large tensor isn't in memory twice. */
template <typename Work>
void for_rows(const GgufTensor& tensor, const Rows& rows, Work work) {
  constexpr size_t slab = size_t(2) << 20; // bytes
  const size_t height = std::max(size_t(1), slab / rows.bytes);
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  for (size_t begin = 0; begin < rows.count; begin += height) {
    const size_t end = std::min(rows.count, begin + height);
    const size_t threads = std::min(cores, (end - begin) * rows.bytes / (slab / 8) + 1); // few bytes: this thread alone
    const size_t share = (end - begin + threads - 1) / threads;
    {
      std::vector<std::jthread> helpers;
      for (size_t first = begin + share; first < end; first += share) {
        helpers.emplace_back(work, first, std::min(end, first + share));
      }
      work(begin, std::min(end, begin + share));
    }
    tensor.file->drop(tensor.offset + begin * rows.bytes, (end - begin) * rows.bytes);
  }
}

mx::Shape shape_of(const GgufTensor& tensor, size_t last) {
  mx::Shape shape(tensor.shape.begin(), tensor.shape.end());
  shape.back() = int(last);
  return shape;
}

/** MLX's packing: a little-endian stream of bits, in uint32 words for 2, 4 and 8 bits and in bytes for the rest,
 * which is the same in memory. */
template <int Bits>
void pack(const uint8_t* codes, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; i += 8, out += Bits) {
    uint64_t word = 0;
    for (int k = 0; k < 8; ++k) {
      word |= uint64_t(codes[i + k]) << (Bits * k);
    }
    std::memcpy(out, &word, Bits);
  }
}

using Pack = void (*)(const uint8_t* codes, size_t count, uint8_t* out);
constexpr Pack packs[] = {nullptr, nullptr, pack<2>, pack<3>, pack<4>, pack<5>, pack<6>, nullptr, pack<8>};

/** The kind's own codes. `Scale` holds its factors exactly; false where one is too large for it. */
template <typename Scale>
bool move_codes(const GgufTensor& tensor, const Rows& rows, uint8_t* codes, Scale* scales, Scale* biases) {
  auto& type = *tensor.type;
  const size_t groups = rows.width / type.group, row_codes = rows.width * type.bits / 8;
  const int block_groups = type.weights / type.group, block_codes = type.weights * type.bits / 8;
  std::atomic<bool> fits = true;
  for_rows(tensor, rows, [&](size_t first, size_t end) {
    GgufBlock block;
    for (size_t row = first; row < end; ++row) {
      const uint8_t* from = rows[row];
      uint8_t* to = codes + row * row_codes;
      for (size_t g = row * groups; g < (row + 1) * groups; from += type.bytes, to += block_codes) {
        type.unpack(from, block);
        packs[type.bits](block.codes, type.weights, to);
        for (int i = 0; i < block_groups; ++i, ++g) {
          scales[g] = static_cast<Scale>(block.scales[i]);
          biases[g] = static_cast<Scale>(block.biases[i]);
          if (static_cast<float>(biases[g]) != block.biases[i] && !std::isnan(block.biases[i])) {
            fits = false;
          }
        }
      }
    }
  });
  return fits;
}

GgufArrays
affine(const GgufTensor& tensor, Blank<uint8_t>& codes, mx::array scales, mx::array biases, int group, int bits) {
  size_t words = size_t(tensor.shape.back()) * bits / 32;
  auto weight = codes.array(shape_of(tensor, words), mx::uint32);
  return {weight, scales, biases, Quantization{group, bits}};
}

template <typename Scale>
std::optional<GgufArrays> repack(const GgufTensor& tensor, const Rows& rows, mx::Dtype dtype) {
  auto& type = *tensor.type;
  size_t groups = rows.width / type.group;
  Blank<uint8_t> codes(rows.count * rows.width * type.bits / 8);
  Blank<Scale> scales(rows.count * groups), biases(rows.count * groups);
  if (!move_codes(tensor, rows, codes.values, scales.values, biases.values)) {
    return {};
  }
  auto shape = shape_of(tensor, groups);
  return affine(tensor, codes, scales.array(shape, dtype), biases.array(shape, dtype), type.group, type.bits);
}

/** What a block's weights are. */
void weights_of(const GgufType& type, const uint8_t* from, GgufBlock& block, float* out) {
  type.unpack(from, block);
  for (int i = 0; i < type.weights; ++i) {
    out[i] = block.scales[i / type.group] * block.codes[i] + block.biases[i / type.group];
  }
}

constexpr int coarse_group = 32;

/** 32 weights to codes between the least and the greatest. */
void requantize(const float* weights, int bits, uint8_t* codes, float& scale, float& bias) {
  auto [least, greatest] = std::minmax_element(weights, weights + coarse_group);
  const float steps = (1 << bits) - 1;
  bias = *least;
  scale = (*greatest - *least) / steps;
  for (int i = 0; i < coarse_group; ++i) {
    codes[i] = scale > 0 ? uint8_t(std::clamp(std::round((weights[i] - bias) / scale), 0.0f, steps)) : 0;
  }
}

GgufArrays coarsen(const GgufTensor& tensor, const Rows& rows) {
  auto& type = *tensor.type;
  const int bits = type.coarse_bits;
  const size_t groups = rows.width / coarse_group;
  Blank<uint8_t> codes(rows.count * rows.width * bits / 8);
  Blank<float> scales(rows.count * groups), biases(rows.count * groups);
  for_rows(tensor, rows, [&](size_t first, size_t end) {
    GgufBlock block;
    float weights[256];
    for (size_t row = first; row < end; ++row) {
      const uint8_t* from = rows[row];
      for (size_t g = row * groups; g < (row + 1) * groups; from += type.bytes) {
        weights_of(type, from, block, weights);
        for (int i = 0; i < type.weights; i += coarse_group, ++g) {
          requantize(weights + i, bits, block.codes, scales.values[g], biases.values[g]);
          packs[bits](block.codes, coarse_group, codes.values + g * coarse_group * bits / 8);
        }
      }
    }
  });
  auto shape = shape_of(tensor, groups);
  return affine(tensor, codes, scales.array(shape, mx::float32), biases.array(shape, mx::float32), coarse_group, bits);
}

/** A block: an exponent, then 32 codes as low and high halves of 16 bytes. */
GgufArrays repack_mxfp4(const GgufTensor& tensor, const Rows& rows) {
  const size_t groups = rows.width / 32;
  Blank<uint8_t> codes(rows.count * rows.width / 2), scales(rows.count * groups);
  for_rows(tensor, rows, [&](size_t first, size_t end) {
    for (size_t row = first; row < end; ++row) {
      const uint8_t* from = rows[row];
      for (size_t g = row * groups; g < (row + 1) * groups; ++g, from += 17) {
        uint8_t block[32];
        scales.values[g] = from[0];
        for (int i = 0; i < 16; ++i) {
          block[i] = from[1 + i] & 15;
          block[i + 16] = from[1 + i] >> 4;
        }
        pack<4>(block, 32, codes.values + g * 16);
      }
    }
  });
  auto weight = codes.array(shape_of(tensor, rows.width / 8), mx::uint32);
  return {weight, scales.array(shape_of(tensor, groups), mx::uint8), {}, Quantization{32, 4, "mxfp4"}};
}

mx::array dense(const GgufTensor& tensor, const Rows& rows, bool ordered) {
  auto dtype = *tensor.type->dtype;
  mx::Shape shape(tensor.shape.begin(), tensor.shape.end());
  if (!ordered) {
    return mapped_array(tensor.file, tensor.offset, shape, dtype);
  }
  Blank<uint8_t> bytes(tensor.bytes);
  for (size_t row = 0; row < rows.count; ++row) {
    std::memcpy(bytes.values + row * rows.bytes, rows[row], rows.bytes);
  }
  tensor.file->drop(tensor.offset, tensor.bytes);
  return bytes.array(shape, dtype);
}

} // namespace

GgufArrays read_gguf_tensor(const GgufTensor& tensor, const GgufReading& reading) {
  auto& type = *tensor.type;
  Rows rows(tensor, reading.order);
  if (type.dtype) {
    return {dense(tensor, rows, !reading.order.empty()), {}, {}, {}};
  }
  tensor.file->expect(tensor.offset, tensor.bytes);
  std::optional<GgufArrays> out;
  if (!type.unpack) {
    out = repack_mxfp4(tensor, rows);
  } else if (type.group == 16 && !reading.groups_of_16) {
    out = coarsen(tensor, rows);
  } else {
    if (!type.wide) {
      out = repack<mx::float16_t>(tensor, rows, mx::float16);
    }
    if (!out) {
      out = repack<float>(tensor, rows, mx::float32);
    }
  }
  check(out.has_value(), "gguf: float32 holds every factor");
  tensor.file->drop(tensor.offset, tensor.bytes);
  return *out;
}

mx::array dequantize_gguf(const GgufTensor& tensor) {
  auto& type = *tensor.type;
  Rows rows(tensor, {});
  if (type.dtype) {
    return mx::astype(dense(tensor, rows, false), mx::float32);
  }
  if (!type.unpack) {
    auto packed = repack_mxfp4(tensor, rows);
    return mx::dequantize(packed.weight, *packed.scales, {}, 32, 4, "mxfp4", {}, mx::float32);
  }
  Blank<float> out(rows.count * rows.width);
  GgufBlock block;
  for (size_t row = 0; row < rows.count; ++row) {
    const uint8_t* from = rows[row];
    for (size_t i = 0; i < rows.width; i += type.weights, from += type.bytes) {
      weights_of(type, from, block, out.values + row * rows.width + i);
    }
  }
  return out.array(mx::Shape(tensor.shape.begin(), tensor.shape.end()), mx::float32);
}

} // namespace parallm
