#include "models/gguf_reader.h"

#include "base/error.h"
#include "models/gguf_types.h"

#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

namespace parallm {
namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "GGUF's numbers are read as they lie");

namespace {

/** One file's header, front to back. */
class Walk {
 public:
  explicit Walk(const std::string& path) : file_(std::make_shared<MappedFile>(path)) {}

  GgufContents contents() {
    if (take(4) != "GGUF") {
      broken("it doesn't begin with GGUF");
    }
    auto version = number<uint32_t>();
    if (version == 0x02000000 || version == 0x03000000) {
      broken("it is big-endian");
    }
    if (version != 2 && version != 3) {
      broken(fmt::format("version must be 2 or 3; got {}", version));
    }
    auto tensors = number<uint64_t>();
    auto pairs = number<uint64_t>();
    GgufContents out;
    for (uint64_t i = 0; i < pairs; ++i) {
      auto key = string();
      if (!out.metadata.set(key, value(number<uint32_t>()))) {
        broken(fmt::format("it has the key {} twice", key));
      }
    }
    for (uint64_t i = 0; i < tensors; ++i) {
      out.tensors.push_back(tensor());
    }
    place(out);
    return out;
  }

 private:
  [[noreturn]] void broken(const std::string& what) const {
    fail(
        Kind::invalid,
        "[open_checkpoint] {} is no GGUF file that can be read: {} (an incomplete download?)",
        file_->path(),
        what);
  }

  size_t left() const {
    return file_->size() - at_;
  }

  std::string_view take(uint64_t bytes) {
    if (bytes > left()) {
      broken(fmt::format("it is cut off at byte {}", at_));
    }
    auto out = file_->text(at_, bytes);
    at_ += bytes;
    return out;
  }

  template <typename T>
  T number() {
    T out{};
    std::memcpy(&out, take(sizeof(out)).data(), sizeof(out));
    return out;
  }

  std::string string() {
    return std::string(take(number<uint64_t>()));
  }

  bool truth() {
    auto byte = number<uint8_t>();
    if (byte > 1) {
      broken(fmt::format("a truth value is {} at byte {}", byte, at_ - 1));
    }
    return byte != 0;
  }

  GgufValue whole() {
    auto out = number<uint64_t>();
    if (out > uint64_t(std::numeric_limits<int64_t>::max())) {
      broken(fmt::format("a value is {} at byte {}", out, at_ - 8));
    }
    return int64_t(out);
  }

  template <typename T>
  static GgufValue one(Walk& walk) {
    return int64_t(walk.number<T>());
  }

  GgufValue fraction() {
    return double(number<float>());
  }

  GgufValue long_fraction() {
    return number<double>();
  }

  GgufValue truth_value() {
    return truth();
  }

  GgufValue text() {
    return string();
  }

  GgufValue value(uint32_t type) {
    if (type >= std::size(kinds)) {
      broken(fmt::format("unknown value type {} at byte {}", type, at_));
    }
    return kinds[type].read(*this);
  }

  GgufValue list() {
    auto type = number<uint32_t>();
    auto count = number<uint64_t>();
    if (type >= std::size(kinds) || !kinds[type].items) {
      broken(fmt::format("it holds a list of the type {}", type));
    }
    if (count > left() / kinds[type].least) {
      broken(fmt::format("a list of {} values goes on past the end", count));
    }
    return kinds[type].items(*this, count, kinds[type].read);
  }

  // Plain functions: GCC 12 calls the wrong member through a table of member pointers under UBSan.
  using Read = GgufValue (*)(Walk&);

  template <typename From, typename To = From>
  static GgufValue items(Walk& walk, uint64_t count, Read read) {
    std::vector<To> out;
    out.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      out.push_back(std::get<From>(read(walk)));
    }
    return out;
  }

  struct ValueKind {
    Read read;
    GgufValue (*items)(Walk&, uint64_t, Read); // null: in no list
    size_t least; // bytes of a value
  };
  static const ValueKind kinds[13];

  GgufTensor tensor() {
    GgufTensor out;
    out.name = string();
    auto dims = number<uint32_t>();
    if (dims > 4) {
      broken(fmt::format("tensor {} has {} dimensions", out.name, dims));
    }
    uint64_t weights = 1;
    for (uint32_t i = 0; i < dims; ++i) {
      auto dim = number<uint64_t>();
      if (dim == 0 || dim > uint64_t(std::numeric_limits<int>::max()) || weights > (uint64_t(1) << 48) / dim) {
        broken(fmt::format("tensor {} has a dimension of {}", out.name, dim));
      }
      weights *= dim;
      out.shape.insert(out.shape.begin(), int(dim));
    }
    auto type = number<uint32_t>();
    out.type = find_gguf_type(type);
    if (!out.type) {
      fail(
          Kind::invalid,
          "[open_checkpoint] {}: tensor {} has the kind {}; the kinds that can be read are {}",
          file_->path(),
          out.name,
          gguf_type_name(type),
          readable_gguf_types());
    }
    if (out.type->weights > 1 && (dims == 0 || out.shape.back() % out.type->weights != 0)) {
      broken(fmt::format("a row of tensor {} is no whole number of blocks of {}", out.name, out.type->weights));
    }
    out.bytes = weights / out.type->weights * out.type->bytes;
    out.offset = number<uint64_t>();
    out.file = file_;
    return out;
  }

  /** Offsets count from the data section, which begins behind the header. */
  void place(GgufContents& out) const {
    int alignment = out.metadata.integer("general.alignment", 32);
    if (alignment <= 0 || !std::has_single_bit(unsigned(alignment))) {
      broken(fmt::format("general.alignment must be a power of two; got {}", alignment));
    }
    size_t data = (at_ + alignment - 1) / alignment * alignment;
    for (auto& tensor : out.tensors) {
      if (tensor.offset % alignment != 0) {
        broken(fmt::format("tensor {} isn't aligned to {} bytes", tensor.name, alignment));
      }
      size_t size = file_->size();
      if (data > size || tensor.offset > size - data || tensor.bytes > size - data - tensor.offset) {
        broken(fmt::format("tensor {} goes on past the end of the file", tensor.name));
      }
      tensor.offset += data;
    }
  }

  std::shared_ptr<const MappedFile> file_;
  size_t at_ = 0;
};

// By number: gguf.md, "gguf_metadata_value_type".
const Walk::ValueKind Walk::kinds[13] = {
    {&Walk::one<uint8_t>, &Walk::items<int64_t>, 1},
    {&Walk::one<int8_t>, &Walk::items<int64_t>, 1},
    {&Walk::one<uint16_t>, &Walk::items<int64_t>, 2},
    {&Walk::one<int16_t>, &Walk::items<int64_t>, 2},
    {&Walk::one<uint32_t>, &Walk::items<int64_t>, 4},
    {&Walk::one<int32_t>, &Walk::items<int64_t>, 4},
    {[](Walk& walk) { return walk.fraction(); }, &Walk::items<double>, 4},
    {[](Walk& walk) { return walk.truth_value(); }, &Walk::items<bool, int64_t>, 1},
    {[](Walk& walk) { return walk.text(); }, &Walk::items<std::string>, 8},
    {[](Walk& walk) { return walk.list(); }, nullptr, 0},
    {[](Walk& walk) { return walk.whole(); }, &Walk::items<int64_t>, 8},
    {&Walk::one<int64_t>, &Walk::items<int64_t>, 8},
    {[](Walk& walk) { return walk.long_fraction(); }, &Walk::items<double>, 8},
};

/** "<name>-00002-of-00003.gguf" -> "<name>-00001-of-00003.gguf" and its fellows (gguf.md, "Sharding"). */
std::vector<std::string> part_paths(const std::string& path, int count) {
  auto tail = fmt::format("-of-{:05}.gguf", count);
  size_t number = tail.size() + 6; // "-00001"
  bool named = path.size() > number && path.ends_with(tail) && path[path.size() - number] == '-';
  if (!named) {
    fail(
        Kind::invalid,
        "[open_checkpoint] {} is a part of {}, so its name must end in -00001{}, and the others must lie beside it",
        path,
        count,
        tail);
  }
  std::vector<std::string> out;
  for (int i = 1; i <= count; ++i) {
    out.push_back(fmt::format("{}-{:05}{}", path.substr(0, path.size() - number), i, tail));
  }
  return out;
}

void check_names(const std::string& path, const std::vector<GgufTensor>& tensors) {
  std::set<std::string_view> names;
  for (auto& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      fail(Kind::invalid, "[open_checkpoint] {} has the tensor {} twice", path, tensor.name);
    }
  }
}

GgufContents open_parts(const std::string& path, int count) {
  GgufContents out;
  auto paths = part_paths(path, count);
  for (int i = 0; i < count; ++i) {
    if (!fs::exists(paths[i])) {
      fail(Kind::invalid, "[open_checkpoint] {} is missing, a part of {}", paths[i], path);
    }
    auto part = Walk(paths[i]).contents();
    int number = part.metadata.integer("split.no"), parts = part.metadata.integer("split.count");
    if (number != i || parts != count) {
      fail(
          Kind::invalid,
          "[open_checkpoint] {} must be part {} of {}; its split.no and split.count say {} of {}",
          paths[i],
          i,
          count,
          number,
          parts);
    }
    if (i == 0) {
      out.metadata = std::move(part.metadata);
    }
    for (auto& tensor : part.tensors) {
      out.tensors.push_back(std::move(tensor));
    }
  }
  int wanted = out.metadata.integer("split.tensors.count", int(out.tensors.size()));
  if (wanted != int(out.tensors.size())) {
    fail(
        Kind::invalid,
        "[open_checkpoint] the parts of {} must hold {} tensors; got {}",
        path,
        wanted,
        out.tensors.size());
  }
  return out;
}

} // namespace

GgufContents open_gguf_contents(const std::string& path) {
  auto out = Walk(path).contents();
  if (int count = out.metadata.integer("split.count", 1); count > 1) {
    out = open_parts(path, count);
  }
  check_names(path, out.tensors);
  return out;
}

} // namespace parallm
