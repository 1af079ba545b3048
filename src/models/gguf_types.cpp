#include "models/gguf_types.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace parallm {

namespace {

float half(const uint8_t* at) {
  mx::float16_t value;
  std::memcpy(&value, at, sizeof(value));
  return static_cast<float>(value);
}

/** 32 codes of 4 bits: the low halves of 16 bytes, then their high halves. */
void nibbles(const uint8_t* from, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = from[i] & 15;
    codes[i + 16] = from[i] >> 4;
  }
}

/** A fifth bit for 32 codes. */
void add_fifth(const uint8_t* from, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  for (int i = 0; i < 32; ++i) {
    codes[i] |= (bits >> i & 1) << 4;
  }
}

void q4_0(const uint8_t* b, GgufBlock& out) {
  out.scales[0] = half(b);
  out.biases[0] = -8 * out.scales[0];
  nibbles(b + 2, out.codes);
}

void q4_1(const uint8_t* b, GgufBlock& out) {
  out.scales[0] = half(b);
  out.biases[0] = half(b + 2);
  nibbles(b + 4, out.codes);
}

void q5_0(const uint8_t* b, GgufBlock& out) {
  out.scales[0] = half(b);
  out.biases[0] = -16 * out.scales[0];
  nibbles(b + 6, out.codes);
  add_fifth(b + 2, out.codes);
}

void q5_1(const uint8_t* b, GgufBlock& out) {
  out.scales[0] = half(b);
  out.biases[0] = half(b + 2);
  nibbles(b + 8, out.codes);
  add_fifth(b + 4, out.codes);
}

void q8_0(const uint8_t* b, GgufBlock& out) {
  out.scales[0] = half(b);
  out.biases[0] = -128 * out.scales[0];
  for (int i = 0; i < 32; ++i) {
    out.codes[i] = b[2 + i] ^ 0x80; // signed bytes, up by 128
  }
}

/** Codes of 2 bits, four planes of 32 in each 32 bytes: 128 codes, twice. */
void pairs(const uint8_t* from, uint8_t* codes) {
  for (int i = 0; i < 256; ++i) {
    codes[i] = from[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
  }
}

// scales[16], codes[64], d, dmin
void q2_k(const uint8_t* b, GgufBlock& out) {
  float d = half(b + 80), least = half(b + 82);
  for (int g = 0; g < 16; ++g) {
    out.scales[g] = d * (b[g] & 15);
    out.biases[g] = -least * (b[g] >> 4);
  }
  pairs(b + 16, out.codes);
}

// high bits[32], codes[64], scales of 6 bits[12], d
void q3_k(const uint8_t* b, GgufBlock& out) {
  float d = half(b + 108);
  const uint8_t* packed = b + 96;
  for (int g = 0; g < 16; ++g) {
    int low = packed[g % 8] >> (g / 8 * 4) & 15;
    int high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
    out.scales[g] = d * ((low | high << 4) - 32);
    out.biases[g] = -4 * out.scales[g];
  }
  pairs(b + 32, out.codes);
  for (int i = 0; i < 256; ++i) {
    out.codes[i] |= (b[i % 32] >> (i / 32) & 1) << 2;
  }
}

/** Q4_K's and Q5_K's 8 scales and 8 minima of 6 bits in 12 bytes. */
void scales_and_minima(const uint8_t* b, GgufBlock& out) {
  float d = half(b), least = half(b + 2);
  const uint8_t* packed = b + 4;
  for (int g = 0; g < 8; ++g) {
    int scale, minimum;
    if (g < 4) {
      scale = packed[g] & 63;
      minimum = packed[g + 4] & 63;
    } else {
      scale = (packed[g + 4] & 15) | packed[g - 4] >> 6 << 4;
      minimum = packed[g + 4] >> 4 | packed[g] >> 6 << 4;
    }
    out.scales[g] = d * scale;
    out.biases[g] = -least * minimum;
  }
}

/** Codes of 4 bits, two planes of 32 in each 32 bytes. */
void long_nibbles(const uint8_t* from, uint8_t* codes) {
  for (int i = 0; i < 256; ++i) {
    codes[i] = from[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
  }
}

// d, dmin, scales and minima[12], codes[128]
void q4_k(const uint8_t* b, GgufBlock& out) {
  scales_and_minima(b, out);
  long_nibbles(b + 16, out.codes);
}

// d, dmin, scales and minima[12], fifth bits[32], codes[128]
void q5_k(const uint8_t* b, GgufBlock& out) {
  scales_and_minima(b, out);
  long_nibbles(b + 48, out.codes);
  for (int i = 0; i < 256; ++i) {
    out.codes[i] |= (b[16 + i % 32] >> (i / 32) & 1) << 4;
  }
}

// low 4 bits[128], high 2 bits[64], signed scales[16], d
void q6_k(const uint8_t* b, GgufBlock& out) {
  float d = half(b + 208);
  for (int g = 0; g < 16; ++g) {
    out.scales[g] = d * static_cast<int8_t>(b[192 + g]);
    out.biases[g] = -32 * out.scales[g];
  }
  pairs(b + 128, out.codes);
  for (int i = 0; i < 256; ++i) {
    int low = b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
    out.codes[i] = out.codes[i] << 4 | low;
  }
}

/** ggml's kvalues_iq4nl, up by 128. */
constexpr uint8_t iq4_table[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

void look_up(uint8_t* codes) {
  for (int i = 0; i < 32; ++i) {
    codes[i] = iq4_table[codes[i]];
  }
}

void iq4_nl(const uint8_t* b, GgufBlock& out) {
  out.scales[0] = half(b);
  out.biases[0] = -128 * out.scales[0];
  nibbles(b + 2, out.codes);
  look_up(out.codes);
}

// d, high 2 bits of 8 scales[2], their low 4 bits[4], codes[128]
void iq4_xs(const uint8_t* b, GgufBlock& out) {
  float d = half(b);
  int high = b[2] | b[3] << 8;
  for (int g = 0; g < 8; ++g) {
    int low = b[4 + g / 2] >> (g % 2 * 4) & 15;
    out.scales[g] = d * ((low | (high >> (2 * g) & 3) << 4) - 32);
    out.biases[g] = -128 * out.scales[g];
    nibbles(b + 8 + 16 * g, out.codes + 32 * g);
    look_up(out.codes + 32 * g);
  }
}

const GgufType types[] = {
    {.id = 0, .name = "F32", .weights = 1, .bytes = 4, .dtype = mx::float32},
    {.id = 1, .name = "F16", .weights = 1, .bytes = 2, .dtype = mx::float16},
    {.id = 30, .name = "BF16", .weights = 1, .bytes = 2, .dtype = mx::bfloat16},
    {.id = 2, .name = "Q4_0", .weights = 32, .bytes = 18, .bits = 4, .group = 32, .unpack = q4_0},
    {.id = 3, .name = "Q4_1", .weights = 32, .bytes = 20, .bits = 4, .group = 32, .unpack = q4_1},
    {.id = 6, .name = "Q5_0", .weights = 32, .bytes = 22, .bits = 5, .group = 32, .unpack = q5_0},
    {.id = 7, .name = "Q5_1", .weights = 32, .bytes = 24, .bits = 5, .group = 32, .unpack = q5_1},
    {.id = 8, .name = "Q8_0", .weights = 32, .bytes = 34, .bits = 8, .group = 32, .unpack = q8_0},
    {.id = 10,
     .name = "Q2_K",
     .weights = 256,
     .bytes = 84,
     .bits = 2,
     .group = 16,
     .wide = true,
     .coarse_bits = 6,
     .unpack = q2_k},
    {.id = 11,
     .name = "Q3_K",
     .weights = 256,
     .bytes = 110,
     .bits = 3,
     .group = 16,
     .wide = true,
     .coarse_bits = 6,
     .unpack = q3_k},
    {.id = 12, .name = "Q4_K", .weights = 256, .bytes = 144, .bits = 4, .group = 32, .wide = true, .unpack = q4_k},
    {.id = 13, .name = "Q5_K", .weights = 256, .bytes = 176, .bits = 5, .group = 32, .wide = true, .unpack = q5_k},
    {.id = 14,
     .name = "Q6_K",
     .weights = 256,
     .bytes = 210,
     .bits = 6,
     .group = 16,
     .wide = true,
     .coarse_bits = 8,
     .unpack = q6_k},
    {.id = 20, .name = "IQ4_NL", .weights = 32, .bytes = 18, .bits = 8, .group = 32, .unpack = iq4_nl},
    {.id = 23, .name = "IQ4_XS", .weights = 256, .bytes = 136, .bits = 8, .group = 32, .wide = true, .unpack = iq4_xs},
    {.id = 39, .name = "MXFP4", .weights = 32, .bytes = 17},
};

/** ggml's other kinds (gguf-py's constants.py), for errors. */
constexpr struct {
  uint32_t id;
  const char* name;
} others[] = {
    {9, "Q8_1"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {24, "I8"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M"},
    {34, "TQ1_0"},
    {35, "TQ2_0"},
    {40, "NVFP4"},
    {41, "Q1_0"},
};

} // namespace

const GgufType* find_gguf_type(uint32_t id) {
  auto* found = std::find_if(std::begin(types), std::end(types), [&](auto& type) { return type.id == id; });
  return found == std::end(types) ? nullptr : found;
}

std::string gguf_type_name(uint32_t id) {
  if (auto* type = find_gguf_type(id)) {
    return type->name;
  }
  auto* found = std::find_if(std::begin(others), std::end(others), [&](auto& type) { return type.id == id; });
  return found == std::end(others) ? fmt::format("type {}", id) : found->name;
}

std::string readable_gguf_types() {
  std::string out;
  for (auto& type : types) {
    out += (out.empty() ? "" : ", ") + std::string(type.name);
  }
  return out;
}

} // namespace parallm
