// Where the contract suite runs: a place for each backend, of which those with a server start it for real on first use
// and end it with the program. PARALLM_TEST_REDIS names the redis-server program, PARALLM_TEST_POSTGRES the folder with
// initdb and postgres, PARALLM_TEST_NEO4J the folder with its jars (tools/stores.sh sets them); without one its place
// says no.
#pragma once

#include "memory/store.h"

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace places {

/** A temporary folder, removed at the end. */
struct Folder {
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path path;
};

/** A child process; killed at the end, and when this one ends. */
class Process {
 public:
  struct Options {
    std::filesystem::path log; // of both outputs; empty: ours
    bool as_nobody = false; // where we are root
    std::vector<std::pair<std::string, std::string>> environment; // more variables
  };
  Process(const std::vector<std::string>& command, const Options& options);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  void kill(); // -9
  void signal(int number); // SIGSTOP: it has stopped when this returns
  int wait(); // its exit status
  bool runs();

 private:
  pid_t pid_;
};

class Place {
 public:
  virtual ~Place() = default;
  /** Empty: it can't be had here. `tensors` of the store are in a folder of their own. */
  virtual std::string url() = 0;
  virtual bool has_server() const {
    return false;
  }
  virtual void stop() {} // kill -9
  virtual void start() {} // again; waits till it serves
  virtual void signal(int /*number*/) {} // to the server's process

  std::unique_ptr<parallm::Store> open() {
    return parallm::open_store(url());
  }
  std::filesystem::path tensors() const {
    return folder_.path / "tensors";
  }

 protected:
  Folder folder_;
};

struct Files {
  static Place& place();
};
struct Faiss {
  static Place& place();
};
struct Sqlite {
  static Place& place();
};
struct Postgres {
  static Place& place();
};
struct Redis {
  static Place& place();
};
struct Neo4j {
  static Place& place();
};

/** This program again, on the one test case. */
std::vector<std::string> this_program(const std::string& test_case);

} // namespace places
