#include "store/places.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <thread>

#if defined(__APPLE__)
#include <mach-o/dyld.h>
#elif defined(__linux__)
#include <sys/prctl.h>
#endif

extern char** environ;

namespace places {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

constexpr uid_t nobody = 65534;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int free_port() {
  const int probe = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (bind(probe, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      getsockname(probe, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("no free port");
  }
  close(probe);
  return ntohs(address.sin_port);
}

class Embedded : public Place {
 public:
  Embedded(std::string scheme, std::string parameters)
      : scheme_(std::move(scheme)), parameters_(std::move(parameters)) {}
  std::string url() override {
    return scheme_ + ":" + (folder_.path / "store").string() + "?tensors=" + tensors().string() + parameters_;
  }

 private:
  std::string scheme_, parameters_;
};

class Server : public Place {
 public:
  bool has_server() const override {
    return true;
  }
  std::string url() override {
    if (process_ == nullptr && available()) {
      start();
    }
    return available() ? address() + "tensors=" + tensors().string() : "";
  }
  void stop() override {
    process_->kill();
    process_.reset();
  }
  void signal(int number) override {
    process_->signal(number);
  }
  void start() override {
    process_ = launch();
    int restarts = 0;
    const auto end = std::chrono::steady_clock::now() + 120s;
    while (!serves()) {
      const bool late = std::chrono::steady_clock::now() > end;
      if (!process_->runs() && !late && restarts++ < 20) {
        std::this_thread::sleep_for(500ms);
        process_ = launch(); // a killed PostgreSQL's children hold its lock for a moment
      } else if (!process_->runs() || late) {
        std::ifstream log(folder_.path / "log");
        throw std::runtime_error("the server did not start: " + std::string(std::istreambuf_iterator<char>(log), {}));
      }
      std::this_thread::sleep_for(100ms);
    }
  }

 protected:
  virtual bool available() const = 0;
  virtual std::string address() const = 0; // ends with ? or &
  virtual std::unique_ptr<Process> launch() = 0;

  /** Whether a store opens there: its table of what went wrong is this suite's matter. */
  virtual bool serves() {
    try {
      parallm::open_store(address() + "tensors=" + tensors().string())->namespaces();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  const int port_ = free_port();
  std::unique_ptr<Process> process_;
};

class RedisServer : public Server {
  bool available() const override {
    return !variable("PARALLM_TEST_REDIS").empty();
  }
  std::string address() const override {
    return "redis://127.0.0.1:" + std::to_string(port_) + "/0?";
  }
  std::unique_ptr<Process> launch() override {
    return std::make_unique<Process>(
        std::vector<std::string>{
            variable("PARALLM_TEST_REDIS"),
            "--port",
            std::to_string(port_),
            "--bind",
            "127.0.0.1",
            "--dir",
            folder_.path.string(),
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always"},
        Process::Options{folder_.path / "log"});
  }
};

class PostgresServer : public Server {
  bool available() const override {
    return !variable("PARALLM_TEST_POSTGRES").empty();
  }
  std::string address() const override {
    return "postgresql://parallm@127.0.0.1:" + std::to_string(port_) + "/postgres?";
  }
  std::unique_ptr<Process> launch() override {
    const fs::path programs = variable("PARALLM_TEST_POSTGRES"), data = folder_.path / "server" / "data";
    Process::Options options{folder_.path / "log", true};
    if (!fs::exists(data)) {
      fs::create_directory(data.parent_path());
      if (geteuid() == 0 && chown(data.parent_path().c_str(), nobody, nobody) != 0) {
        throw std::runtime_error("can't give a folder to nobody");
      }
      const std::vector<std::string> command = {
          (programs / "initdb").string(),
          "-D",
          data.string(),
          "-U",
          "parallm",
          "-A",
          "trust",
          "-E",
          "UTF8",
          "--no-sync"};
      Process(command, options).wait();
    }
    return std::make_unique<Process>(
        std::vector<std::string>{
            (programs / "postgres").string(),
            "-D",
            data.string(),
            "-p",
            std::to_string(port_),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "shared_buffers=64MB"},
        options);
  }
};

class Neo4jServer : public Server {
  bool available() const override {
    return !variable("PARALLM_TEST_NEO4J").empty();
  }
  std::string address() const override {
    return "neo4j://127.0.0.1:" + std::to_string(port_) + "/neo4j?";
  }
  std::unique_ptr<Process> launch() override {
    const fs::path home = folder_.path / "server";
    fs::create_directories(home / "conf");
    std::ofstream(home / "conf" / "neo4j.conf") << "dbms.security.auth_enabled=false\n"
                                                << "server.http.listen_address=127.0.0.1:" << port_ << "\n"
                                                << "server.https.enabled=false\n"
                                                << "server.bolt.listen_address=127.0.0.1:" << bolt_port_ << "\n"
                                                << "dbms.usage_report.enabled=false\n"
                                                << "server.memory.pagecache.size=32m\n";
    return std::make_unique<Process>(
        std::vector<std::string>{
            "java",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "--add-opens=java.base/java.nio=ALL-UNNAMED",
            "--add-opens=java.base/java.lang=ALL-UNNAMED",
            "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
            "-cp",
            variable("PARALLM_TEST_NEO4J") + "/*",
            "org.neo4j.server.CommunityEntryPoint",
            "--home-dir=" + home.string(),
            "--config-dir=" + (home / "conf").string()},
        Process::Options{folder_.path / "log"});
  }
  const int bolt_port_ = free_port(); // its HTTP API goes through it
};

} // namespace

Folder::Folder() {
  std::string name = (fs::temp_directory_path() / "store_test.XXXXXX").string();
  path = mkdtemp(name.data());
  fs::permissions(path, fs::perms::owner_all | fs::perms::others_exec | fs::perms::group_exec);
}

Folder::~Folder() {
  std::error_code busy; // a server's own children may still write for a moment
  for (int tries = 0; tries < 20 && (fs::remove_all(path, busy), busy); ++tries) {
    std::this_thread::sleep_for(100ms);
  }
}

Process::Process(const std::vector<std::string>& command, const Options& options) {
  std::vector<char*> words;
  words.reserve(command.size() + 1);
  for (const std::string& word : command) {
    words.push_back(const_cast<char*>(word.c_str()));
  }
  words.push_back(nullptr);
  const std::string log = options.log.string();
  std::vector<std::string> settings;
  std::vector<char*> environment;
  for (const auto& [name, value] : options.environment) {
    settings.push_back(name + "=" + value);
  }
  for (std::string& setting : settings) {
    environment.push_back(setting.data());
  }
  for (char** at = environ; *at != nullptr; ++at) {
    environment.push_back(*at);
  }
  environment.push_back(nullptr);
  pid_ = fork();
  if (pid_ < 0) {
    throw std::runtime_error("fork failed");
  }
  if (pid_ > 0) {
    return;
  }
  // Only calls that are safe after a fork of a program with threads.
#if defined(__linux__)
  prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
  if (!log.empty()) {
    const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
  }
  if (options.as_nobody && geteuid() == 0 &&
      (setgroups(0, nullptr) != 0 || setgid(nobody) != 0 || setuid(nobody) != 0)) {
    _exit(126);
  }
#if defined(__linux__)
  prctl(PR_SET_PDEATHSIG, SIGKILL); // a change of user clears it
#endif
  if (options.as_nobody && chdir("/") != 0) {
    _exit(126);
  }
  environ = environment.data();
  execvp(words[0], words.data());
  _exit(127);
}

Process::~Process() {
  kill();
}

void Process::kill() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    wait();
  }
}

void Process::signal(int number) {
  if (pid_ > 0 && ::kill(pid_, number) == 0 && number == SIGSTOP) {
    while (waitpid(pid_, nullptr, WUNTRACED) < 0 && errno == EINTR) { // till all its threads have stopped
    }
  }
}

int Process::wait() {
  int status = 0;
  if (pid_ > 0) {
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
  }
  return status;
}

bool Process::runs() {
  if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) {
    pid_ = -1;
  }
  return pid_ > 0;
}

Place& Files::place() {
  static Embedded place("files", "");
  return place;
}

Place& Faiss::place() {
  static Embedded place("faiss", "&exact=8"); // so that the small sets of this suite go through the index
  return place;
}

Place& Sqlite::place() {
  static Embedded place("sqlite", "");
  return place;
}

Place& Postgres::place() {
  static PostgresServer place;
  return place;
}

Place& Redis::place() {
  static RedisServer place;
  return place;
}

Place& Neo4j::place() {
  static Neo4jServer place;
  return place;
}

std::vector<std::string> this_program(const std::string& test_case) {
#if defined(__APPLE__)
  char path[4096];
  uint32_t size = sizeof path;
  _NSGetExecutablePath(path, &size);
  const std::string program = path;
#else
  const std::string program = fs::read_symlink("/proc/self/exe").string();
#endif
  return {program, "--no-skip", "--test-case=" + test_case};
}

} // namespace places
