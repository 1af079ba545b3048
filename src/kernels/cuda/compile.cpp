#include "kernels/cuda/compile.h"

#include "base/hash.h"
#include "base/random_hex.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <vector>

namespace parallm::cuda {

namespace {

namespace fs = std::filesystem;

/** What is used of NVRTC (nvrtc.h, whose functions give 0 where all is well). */
struct Nvrtc {
  int (*version)(int* major, int* minor) = nullptr;
  int (*create)(void** program, const char* text, const char* name, int, const char* const*, const char* const*) =
      nullptr;
  int (*compile)(void* program, int count, const char* const* options) = nullptr;
  int (*log_size)(void* program, size_t* bytes) = nullptr;
  int (*log)(void* program, char* to) = nullptr;
  int (*cubin_size)(void* program, size_t* bytes) = nullptr;
  int (*cubin)(void* program, char* to) = nullptr;
  int (*destroy)(void** program) = nullptr;
  bool whole = false;

  Nvrtc() {
    const auto find = [&](auto& function, const char* name) {
      void* symbol = dlsym(RTLD_DEFAULT, name);
      for (const char* library : {"libnvrtc.so.13", "libnvrtc.so.12"}) {
        void* opened = symbol ? nullptr : dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
        symbol = opened ? dlsym(opened, name) : symbol;
      }
      function = reinterpret_cast<std::decay_t<decltype(function)>>(symbol);
      return symbol != nullptr;
    };
    whole = find(version, "nvrtcVersion") && find(create, "nvrtcCreateProgram") &&
        find(compile, "nvrtcCompileProgram") && find(log_size, "nvrtcGetProgramLogSize") &&
        find(log, "nvrtcGetProgramLog") && find(cubin_size, "nvrtcGetCUBINSize") && find(cubin, "nvrtcGetCUBIN") &&
        find(destroy, "nvrtcDestroyProgram");
  }
};

const Nvrtc& nvrtc() {
  static const Nvrtc found;
  return found;
}

void check_result(int result, const char* what) {
  if (result != 0) {
    throw std::runtime_error(fmt::format("[cuda] {}: NVRTC's error {}", what, result));
  }
}

std::string compile(const std::string& text, const std::string& architecture) {
  const Nvrtc& library = nvrtc();
  void* program = nullptr;
  check_result(library.create(&program, text.c_str(), "kernel.cu", 0, nullptr, nullptr), "no program");
  struct Destroy {
    void*& program;
    ~Destroy() {
      nvrtc().destroy(&program);
    }
  } destroy{program};
  const std::string target = "--gpu-architecture=" + architecture;
  const std::vector<const char*> options{target.c_str(), "--std=c++17"};
  if (library.compile(program, int(options.size()), options.data()) != 0) {
    size_t bytes = 0;
    check_result(library.log_size(program, &bytes), "no log");
    std::string log(bytes, '\0');
    check_result(library.log(program, log.data()), "no log");
    throw std::runtime_error("[cuda] a kernel doesn't compile: " + log);
  }
  size_t bytes = 0;
  check_result(library.cubin_size(program, &bytes), "no code");
  std::string code(bytes, '\0');
  check_result(library.cubin(program, code.data()), "no code");
  return code;
}

fs::path cache_folder() {
  const auto variable = [](const char* name) { return std::string(std::getenv(name) ? std::getenv(name) : ""); };
  if (auto named = variable("PARALLM_CUDA_CACHE"); !named.empty()) {
    return named;
  }
  const auto cache = variable("XDG_CACHE_HOME"), home = variable("HOME");
  if (cache.empty() && home.empty()) {
    return {};
  }
  return (cache.empty() ? fs::path(home) / ".cache" : fs::path(cache)) / "mlx_parallm" / "cuda";
}

constexpr size_t digits = 64; // of the hash that a file begins with

std::string read_cached(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string all{std::istreambuf_iterator<char>(in), {}};
  if (all.size() <= digits || sha256(std::string_view(all).substr(digits)) != std::string_view(all).substr(0, digits)) {
    return "";
  }
  return all.substr(digits);
}

void write_cached(const fs::path& file, const std::string& code) {
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  const fs::path draft = file.string() + "." + random_hex(8);
  const bool written = bool(std::ofstream(draft, std::ios::binary) << sha256(code) << code << std::flush);
  if (written) {
    fs::rename(draft, file, error);
  }
  if (!written || error) {
    fs::remove(draft, error);
  }
}

} // namespace

bool can_compile() {
  return nvrtc().whole;
}

std::string compiled(const std::string& text, int major, int minor) {
  int version[2] = {};
  check_result(nvrtc().version(&version[0], &version[1]), "no version");
  const auto architecture = fmt::format("sm_{}{}{}", major, minor, major == 9 ? "a" : "");
  const fs::path folder = cache_folder();
  if (folder.empty()) {
    return compile(text, architecture);
  }
  const auto name = sha256(fmt::format("{} {}.{}\n{}", architecture, version[0], version[1], text));
  const fs::path file = folder / (name.substr(0, 32) + ".cubin");
  if (auto known = read_cached(file); !known.empty()) {
    return known;
  }
  auto code = compile(text, architecture);
  write_cached(file, code);
  return code;
}

} // namespace parallm::cuda
