#include "library/memory.h"

#include <mlx/mlx.h>

#include <unistd.h>

#include <fstream>
#include <string>

namespace parallm {

namespace mx = mlx::core;

namespace {

size_t machine_memory() {
  std::ifstream info("/proc/meminfo");
  std::string name;
  size_t kilobytes = 0;
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("MemAvailable:")) {
      kilobytes = std::stoull(line.substr(13));
    }
  }
  if (kilobytes > 0) {
    return kilobytes * 1024;
  }
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

} // namespace

size_t free_memory() {
  if (mx::default_device() == mx::Device::cpu) {
    return machine_memory();
  }
  const auto& info = mx::device_info();
  for (const char* key : {"free_memory", "max_recommended_working_set_size", "memory_size", "total_memory"}) {
    if (const auto found = info.find(key); found != info.end()) {
      const size_t bytes = std::get<size_t>(found->second);
      const size_t used = mx::get_active_memory();
      // "free_memory" already knows what is used.
      return std::string(key) == "free_memory" ? bytes : bytes > used ? bytes - used : 0;
    }
  }
  return machine_memory();
}

} // namespace parallm
