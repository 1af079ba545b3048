#include "models/safetensors.h"

#include "base/error.h"
#include "base/mapped_file.h"
#include "models/config.h"
#include "models/mapped_array.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>

namespace parallm {

namespace {

struct NamedType {
  const char* name;
  mx::Dtype dtype;
};

// The first name of a dtype is the one that is written.
const NamedType dtypes[] = {
    {"F64", mx::float64},
    {"F32", mx::float32},
    {"F16", mx::float16},
    {"BF16", mx::bfloat16},
    {"I64", mx::int64},
    {"I32", mx::int32},
    {"I16", mx::int16},
    {"I8", mx::int8},
    {"U64", mx::uint64},
    {"U32", mx::uint32},
    {"U16", mx::uint16},
    {"U8", mx::uint8},
    {"BOOL", mx::bool_},
    {"C64", mx::complex64},
    {"F8_E4M3", mx::uint8},
    {"F8_E5M2", mx::uint8},
    {"F8_E8M0", mx::uint8}};

[[noreturn]] void broken(const std::string& path, const std::string& what) {
  fail(Kind::invalid, "[open_checkpoint] {} can't be read: {} (an incomplete download?)", path, what);
}

struct Entry {
  std::string name;
  mx::Dtype dtype;
  mx::Shape shape;
  size_t offset; // in the file
};

Entry read_entry(const std::string& path, const std::string& name, const Config& tensor, size_t start, size_t end) {
  const auto type = tensor.text("dtype");
  const auto* known = std::find_if(std::begin(dtypes), std::end(dtypes), [&](auto& d) { return type == d.name; });
  if (known == std::end(dtypes)) {
    fail(Kind::invalid, "[open_checkpoint] {}: tensor {} is of dtype '{}', which MLX doesn't have", path, name, type);
  }
  const auto offsets = tensor.numbers("data_offsets");
  if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] || offsets[1] > double(end - start)) {
    broken(path, fmt::format("tensor {} goes on past the end of the file", name));
  }
  double size = mx::size_of(known->dtype);
  mx::Shape shape;
  for (auto n : tensor.numbers("shape")) {
    if (n < 0 || n > std::numeric_limits<int32_t>::max() || n != std::floor(n)) {
      broken(path, fmt::format("tensor {} has an axis of {}", name, n));
    }
    shape.push_back(static_cast<int32_t>(n));
    size *= n;
  }
  if (size != offsets[1] - offsets[0]) {
    broken(path, fmt::format("tensor {} has {} bytes of {}", name, offsets[1] - offsets[0], size));
  }
  return {name, known->dtype, std::move(shape), start + static_cast<size_t>(offsets[0])};
}

std::vector<Entry> read_header(const MappedFile& file) {
  uint64_t length = 0;
  if (file.size() < sizeof(length)) {
    broken(file.path(), "its header is cut off");
  }
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > file.size() - sizeof(length)) {
    broken(file.path(), "its header is cut off");
  }
  boost::system::error_code error;
  const auto header = boost::json::parse(file.text(sizeof(length), length), error);
  if (error || !header.is_object()) {
    broken(file.path(), "its header is no JSON object");
  }
  std::vector<Entry> entries;
  for (const auto& [key, value] : header.get_object()) {
    const std::string name(key);
    if (name == "__metadata__") {
      continue;
    }
    if (!value.is_object()) {
      broken(file.path(), fmt::format("tensor {} is no JSON object", name));
    }
    const Config tensor{value.get_object(), file.path() + ": " + name};
    entries.push_back(read_entry(file.path(), name, tensor, sizeof(length) + length, file.size()));
  }
  return entries;
}

size_t round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

} // namespace

std::unordered_map<std::string, mx::array> read_safetensors(const std::string& path) {
  const auto file = std::make_shared<const MappedFile>(path);
  const auto entries = read_header(*file); // now, though a GPU's tensors are read later
  if (mx::default_device() != mx::Device::cpu) {
    return mx::load_safetensors(path).first;
  }
  std::unordered_map<std::string, mx::array> arrays;
  for (const auto& entry : entries) {
    arrays.emplace(entry.name, mapped_array(file, entry.offset, entry.shape, entry.dtype));
  }
  file->expect(0, file->size());
  return arrays;
}

SafetensorsLayout lay_out_safetensors(const std::vector<NamedArray>& tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return tensors[a].array->itemsize() > tensors[b].array->itemsize();
  });
  SafetensorsLayout out{std::vector<size_t>(tensors.size()), {}};
  boost::json::object header{{"__metadata__", {{"format", "mlx"}}}};
  size_t at = 0;
  for (auto i : order) {
    const auto& array = *tensors[i].array;
    const auto* known =
        std::find_if(std::begin(dtypes), std::end(dtypes), [&](auto& d) { return d.dtype == array.dtype(); });
    check(known != std::end(dtypes), "write_safetensors: a dtype of the format");
    header[tensors[i].name] = {
        {"dtype", known->name},
        {"shape", boost::json::array(array.shape().begin(), array.shape().end())},
        {"data_offsets", {at, at + array.nbytes()}}};
    out.offsets[i] = at;
    at += array.nbytes();
  }
  auto text = boost::json::serialize(header);
  text.resize(round_up(text.size(), 8), ' '); // spaces are part of the format
  const uint64_t length = text.size();
  out.head.assign(reinterpret_cast<const char*>(&length), sizeof(length));
  out.head += text;
  for (auto& offset : out.offsets) {
    offset += out.head.size();
  }
  return out;
}

void write_safetensors(
    const std::string& path,
    std::vector<NamedArray> tensors,
    const std::function<void(size_t)>& written) {
  const auto layout = lay_out_safetensors(tensors);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << layout.head;
  for (size_t i = 0; i < tensors.size() && out; i++) {
    auto array = mx::contiguous(*std::exchange(tensors[i].array, std::nullopt));
    mx::eval(array);
    out.seekp(static_cast<std::streamoff>(layout.offsets[i]));
    out.write(array.data<char>(), static_cast<std::streamsize>(array.nbytes()));
    if (written) {
      written(array.nbytes());
    }
  }
  out.close();
  if (!out) {
    fail(Kind::invalid, "[write_safetensors] can't write {}: {}", path, std::strerror(errno));
  }
}

} // namespace parallm
