#include "models/mapped_array.h"

#include "golden.h"

#include <mlx/backend/cuda/cuda.h>
#include <mlx/backend/metal/metal.h>

#include <unistd.h>

#include <fstream>

namespace parallm::test {
namespace fs = std::filesystem;

TEST_CASE("mapped_array: a tensor is the mapping itself, outlives the file and never writes to it") {
  auto path = (fs::temp_directory_path() / fmt::format("parallm_array_{}", ::getpid())).string();
  std::vector<float> numbers(5000);
  std::iota(numbers.begin(), numbers.end(), 0.0f);
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<char*>(numbers.data()), numbers.size() * 4);
  auto file = std::make_shared<const MappedFile>(path);
  std::weak_ptr<const MappedFile> alive = file;
  {
    auto whole = mapped_array(file, 32, {4, 1000}, mx::float32);
    auto odd = mapped_array(file, 33, {10}, mx::float32);
    bool cpu = !mx::metal::is_available() && !mx::cu::is_available();
    CHECK((static_cast<const void*>(whole.data<float>()) == file->data() + 32) == cpu);
    CHECK(floats(whole) == std::vector<float>(numbers.begin() + 8, numbers.begin() + 4008));
    CHECK(ints(mx::view(odd, mx::uint8))[3] == int(file->data()[36]));
    // The last user of an array may hand its memory to its output.
    auto changed = mx::negative(mx::negative(mapped_array(file, 32, {4000}, mx::float32)) + mx::array(1.0f));
    CHECK(floats(changed)[3999] == 4006.0f);
    file.reset();
    CHECK(alive.expired() == !cpu); // a GPU has a copy
    CHECK(floats(whole)[3999] == numbers[4007]);
  }
  mx::synchronize();
  CHECK(alive.expired());
  std::ifstream in(path, std::ios::binary);
  std::vector<float> again(5000);
  in.read(reinterpret_cast<char*>(again.data()), again.size() * 4);
  CHECK(again == numbers);
  fs::remove(path);
}

} // namespace parallm::test
