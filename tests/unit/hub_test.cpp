#include "base/error.h"
#include "hub/api.h"
#include "hub/cache.h"
#include "hub/digest.h"
#include "hub/hub.h"
#include "hub/names.h"

#include <doctest/doctest.h>

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

using namespace parallm;
namespace fs = std::filesystem;

namespace {

std::vector<std::string> wanted_of(const std::string& name, const std::vector<std::string>& paths) {
  std::vector<HubFile> files;
  for (const std::string& path : paths) {
    files.push_back({.path = path});
  }
  std::vector<std::string> wanted;
  for (const HubFile& file : wanted_files(*parse_hub_name(name), files)) {
    wanted.push_back(file.path);
  }
  std::sort(wanted.begin(), wanted.end());
  return wanted;
}

using Paths = std::vector<std::string>;

struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "hub_test.XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() {
    fs::remove_all(path);
  }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((path / name).parent_path());
    std::ofstream(path / name) << text;
  }
};

} // namespace

TEST_CASE("hub names: shapes that go to the hub") {
  const auto plain = parse_hub_name("mlx-community/Llama-3.2-1B_x");
  REQUIRE(plain);
  CHECK(plain->repo == "mlx-community/Llama-3.2-1B_x");
  CHECK(plain->revision == "main");
  CHECK(!plain->gguf());
  CHECK(parse_hub_name("a/b@refs/pr/1")->revision == "refs/pr/1");
  CHECK(parse_hub_name("a/b/sub/x.gguf@v1")->file == "sub/x.gguf");
  CHECK(parse_hub_name("a/b:Q4_K_M@v1")->tag == "Q4_K_M");
}

TEST_CASE("hub names: shapes that don't") {
  for (const char* name :
       {"",
        "a",
        "/a/b",
        "./a/b",
        "a/",
        "/a",
        "~/b",
        "a/b/",
        "a/b/c",
        "a/b.gguf",
        "a/b.safetensors",
        "a/b.git",
        "a--x/b",
        "a/..",
        "../b",
        "a/.b",
        "a/b-",
        "a b/c",
        "a/b@",
        "a/b@..",
        "a/b@/x",
        "a/b@x\ny",
        "a/b:",
        "a/b:../x",
        "a/b:Q4/x.gguf",
        "a/b/../x.gguf",
        "a/b//x.gguf",
        "a/é"}) {
    CAPTURE(name);
    CHECK(!is_hub_name(name));
  }
}

TEST_CASE("hub names: paths that stay inside") {
  CHECK(is_safe_path("a/b.json"));
  CHECK(is_safe_path("..a"));
  for (const char* path : {"", "/a", "a/", "a//b", "..", "a/..", "./a", "a\\b", "a\nb", "a\x7f"}) {
    CAPTURE(path);
    CHECK(!is_safe_path(path));
  }
}

TEST_CASE("hub files: weights once, text, no code and no pickles") {
  CHECK(
      wanted_of(
          "a/b",
          {"README.md",
           "config.json",
           "x.py",
           "pytorch_model.bin",
           "model-00001-of-00002.safetensors",
           "model-00002-of-00002.safetensors",
           "model.safetensors.index.json",
           "consolidated.safetensors",
           "original/params.json",
           "onnx/config.json",
           "checkpoint-5/model.safetensors",
           "1_Pooling/config.json",
           "2_Dense/model.safetensors",
           "2_Dense/pytorch_model.bin",
           "merges.txt",
           "requirements.txt",
           "tokenizer.model",
           "chat_template.jinja",
           "additional_chat_templates/rag.jinja"}) ==
      Paths{
          "1_Pooling/config.json",
          "2_Dense/model.safetensors",
          "additional_chat_templates/rag.jinja",
          "chat_template.jinja",
          "config.json",
          "merges.txt",
          "model-00001-of-00002.safetensors",
          "model-00002-of-00002.safetensors",
          "model.safetensors.index.json",
          "tokenizer.model"});
  CHECK(wanted_of("a/b", {"model.safetensors", "model.fp16.safetensors"}) == Paths{"model.safetensors"});
  CHECK(wanted_of("a/b", {"weights.00.safetensors", "consolidated.safetensors"}) == Paths{"weights.00.safetensors"});
  CHECK(wanted_of("a/b", {"consolidated.safetensors"}) == Paths{"consolidated.safetensors"});
  CHECK_THROWS_AS(wanted_of("a/b", {"config.json"}), Error);
}

TEST_CASE("hub files: one GGUF by name or tag") {
  const Paths files = {
      "m.Q4_K_M.gguf", "m.Q4_K.gguf", "m.IQ4_XS.gguf", "m-BF16.gguf", "m-f16.gguf", "model.safetensors"};
  CHECK(wanted_of("a/b:q4_k", files) == Paths{"m.Q4_K.gguf"});
  CHECK(wanted_of("a/b:F16", files) == Paths{"m-f16.gguf"});
  CHECK(wanted_of("a/b/m.IQ4_XS.gguf", files) == Paths{"m.IQ4_XS.gguf"});
  CHECK_THROWS_AS(wanted_of("a/b:Q4_XS", files), Error);
  CHECK_THROWS_AS(wanted_of("a/b:m", files), Error); // all of them
}

TEST_CASE("hub digests: SHA-256, git's SHA-1, and etags that are no hash") {
  // `printf 'hello' | sha256sum` and `printf 'hello' | git hash-object --stdin`
  const std::string sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
  const std::string git = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
  for (const std::string& etag : {sha256, git}) {
    Digest right(etag, 5), wrong(etag, 5);
    right.add("hel");
    right.add("lo");
    wrong.add("hallo");
    CHECK(right.matches());
    CHECK(!wrong.matches());
    CHECK(wrong.found() != etag);
  }
  CHECK(Digest("strange-etag", 5).matches());
  CHECK(!is_checkable(sha256.substr(1)));
}

TEST_CASE("hub listing: etags and sizes; what is not the hub's is refused") {
  const HubName name = *parse_hub_name("a/b");
  const std::string commit(40, 'c');
  const Listing listing = read_listing(
      R"({"sha":")" + commit + R"(","siblings":[{"rfilename":"x.json","size":3,"blobId":"abc"},
      {"rfilename":"m.safetensors","size":9,"blobId":"p","lfs":{"sha256":"def","size":9}},{"rfilename":"bare"}]})",
      name);
  REQUIRE(listing.files.size() == 3);
  CHECK(listing.files[0].etag == "abc");
  CHECK(listing.files[0].size == 3);
  CHECK(listing.files[1].etag == "def");
  CHECK(listing.files[2].etag.empty());
  CHECK(!listing.files[2].size);
  for (const char* body : {"", "[]", "<html>", R"({"sha":"x","siblings":[]})"}) {
    CHECK_THROWS_AS(read_listing(body, name), Error);
  }
  for (const char* entry : {"3", "{}", R"({"rfilename":"../x"})", R"({"rfilename":"x","blobId":"../y"})"}) {
    CHECK_THROWS_AS(read_listing(R"({"sha":")" + commit + R"(","siblings":[)" + entry + "]}", name), Error);
  }
  const HubName fixed = *parse_hub_name("a/b@" + std::string(40, 'd'));
  CHECK_THROWS_AS(read_listing(R"({"sha":")" + commit + R"(","siblings":[]})", fixed), Error);
}

TEST_CASE("hub replies: how long to wait") {
  Reply reply{.status = 429};
  CHECK(!reply.retry_after());
  reply.headers["ratelimit"] = R"("api";r=0;t=55)";
  CHECK(reply.retry_after() == 55);
  reply.headers["retry-after"] = "7";
  CHECK(reply.retry_after() == 7);
  reply.headers["retry-after"] = "Wed, 21 Oct 2015 07:28:00 GMT";
  CHECK(reply.retry_after() == 0);
  reply.headers["retry-after"] = "soon";
  CHECK(!reply.retry_after());
}

TEST_CASE("hub URLs: names are quoted") {
  const HubOptions options{.endpoint = "http://h"};
  const HubName name = *parse_hub_name("a/b@refs/pr/1");
  CHECK(listing_question(options, name).url == "http://h/api/models/a/b/revision/refs%2Fpr%2F1?blobs=true");
  CHECK(file_question(options, name, "c", {.path = "d/e f#?.json"}).url == "http://h/a/b/resolve/c/d/e%20f%23%3F.json");
}

TEST_CASE("hub cache: locks exclude, refs are read back, what a snapshot lacks is named") {
  const Folder folder;
  const Cache cache(folder.path.string(), "a/b");
  const std::string commit(40, 'c');
  {
    FileLock first(cache.lock("e")), second(cache.lock("e"));
    CHECK(first.try_lock());
    CHECK(!second.try_lock());
  }
  FileLock third(cache.lock("e"));
  CHECK(third.try_lock());

  CHECK(!cache.commit("main"));
  CHECK(cache.set_commit("refs/pr/1", commit));
  CHECK(cache.commit("refs/pr/1") == commit);
  CHECK(cache.commit(commit) == commit);
  folder.write("models--a--b/refs/bad", "../../x");
  CHECK(!cache.commit("bad"));

  CHECK(cache.lacks(commit) == Paths{"config.json", "*.safetensors", "tokenizer.json"});
  const std::string snapshot = "models--a--b/snapshots/" + commit + "/";
  folder.write(snapshot + "config.json", "{}");
  folder.write(snapshot + "tokenizer.json", "{}");
  folder.write(
      snapshot + "model.safetensors.index.json", R"({"weight_map":{"x":"1.safetensors","y":"2.safetensors"}})");
  folder.write("models--a--b/blobs/e", "weights");
  cache.link(commit, {.path = "1.safetensors", .etag = "e"});
  CHECK(fs::read_symlink(folder.path / snapshot / "1.safetensors") == "../../blobs/e");
  CHECK(cache.lacks(commit) == Paths{"2.safetensors"});
  CHECK(cache.has(commit, {.path = "1.safetensors", .size = 7}));
  CHECK(!cache.has(commit, {.path = "1.safetensors", .size = 8}));
}
