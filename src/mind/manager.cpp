// Adding documents; what requests do with them is in recall.cpp.
#include "mind/manager.h"

#include "base/hash.h"
#include "base/random_hex.h"
#include "mind/planned.h"

#include <algorithm>
#include <future>
#include <set>

namespace parallm {

namespace {

// Documents of at most so many tokens are packed, and so many of them together.
constexpr size_t most_packed = 256, most_pack = 512;
constexpr size_t most_header = 1024; // tokens: each document of a request has a copy
constexpr size_t most_backgrounds = 64; // 4 bytes a memory
// The reference's.
constexpr int usual_length = 3072, usual_stride = 512;

std::string vocabulary_hash(const Tokenizer& tokenizer) {
  Hash hash;
  for (int32_t id = 0; id < tokenizer.size(); ++id) {
    const std::string& bytes = tokenizer.bytes(id);
    hash.add(fmt::format("{} {} ", bytes.size(), tokenizer.is_special(id)));
    hash.add(bytes);
  }
  return hash.hex();
}

} // namespace

MemoryManager::MemoryManager(
    std::unique_ptr<MemoryEncoder> encoder,
    const Tokenizer& tokenizer,
    int32_t bos,
    std::unique_ptr<Store> store,
    MemoryOptions options)
    : encoder_(std::move(encoder)),
      tokenizer_(tokenizer),
      bos_(bos),
      store_(std::move(store)),
      options_(std::move(options)),
      fingerprint_(encoder_->fingerprint()),
      vocabulary_(vocabulary_hash(tokenizer)),
      shelf_(options_.ram_bytes),
      backgrounds_(most_backgrounds) {
  for (int32_t id = 0; id < tokenizer.size(); ++id) {
    if (tokenizer.is_special(id)) {
      special_.push_back(id);
    }
  }
  stats_.ram_limit = options_.ram_bytes;
}

MemoryManager::~MemoryManager() {
  stop();
}

void MemoryManager::stop() {
  stopping_ = true;
  jobs_.stop();
}

std::vector<int32_t> MemoryManager::kept(const std::vector<int32_t>& ids) const {
  std::vector<int32_t> out;
  std::copy_if(ids.begin(), ids.end(), std::back_inserter(out), [&](int32_t id) {
    return !std::binary_search(special_.begin(), special_.end(), id);
  });
  return out;
}

MemoryManager::Header MemoryManager::header_of(const ReadOptions& how) const {
  Header out{how.header, how.header.empty() ? std::vector<int32_t>() : tokenizer_.encode(how.header, false)};
  const size_t most = std::min<size_t>(most_header, how.max_length - 1);
  if (out.ids.size() > most) {
    fail_field("header", "[memory] a header may have {} tokens; got {}", most, out.ids.size());
  }
  return out;
}

MemoryManager::Planned MemoryManager::plan_one(
    const NewDocument& document,
    const ReadOptions& how,
    const Header& header,
    const std::string& field) const {
  Planned out;
  Document& planned = out.document;
  planned.id = document.id.empty() ? "mem_" + random_hex(24) : document.id;
  planned.metadata = document.metadata;
  planned.header = header.text;
  if (document.text.has_value() == !document.ids.empty()) {
    fail_field(
        field + ".text",
        "[memory] a document has either text or token_ids; got {}",
        document.text ? "both" : "neither");
  }
  if (document.text) {
    planned.text = *document.text;
    planned.token_ids = tokenizer_.encode(planned.text, false);
  } else {
    const auto most = encoder_->vocabulary();
    for (const int32_t id : document.ids) {
      if (id < 0 || id >= most) {
        fail_field(field + ".token_ids", "[memory] token ids must be from 0 to {}; got {}", most - 1, id);
      }
    }
    planned.token_ids = document.ids;
    planned.text = tokenizer_.decode(document.ids, true);
  }
  const size_t size = planned.token_ids.size();
  if (size > options_.document_tokens) {
    throw Error(
        Kind::too_large,
        field,
        fmt::format("[memory] a document may have {} tokens; got {}", options_.document_tokens, size));
  }
  if (planned.tokens = kept(planned.token_ids).size(); planned.tokens == 0) {
    fail_field(
        field + (document.text ? ".text" : ".token_ids"),
        "[memory] a document must have a token that is not special; got {} tokens",
        size);
  }
  if (const size_t bytes = planned.tokens * encoder_->token_bytes(); bytes > options_.ram_bytes) {
    throw Error(
        Kind::too_large,
        field,
        fmt::format(
            "[memory] a document of {} tokens takes {} bytes; there is room for {}",
            planned.tokens,
            bytes,
            options_.ram_bytes));
  }
  out.given_ids = !document.text;
  out.how = how;
  out.before = header.ids;
  return out;
}

ReadOptions MemoryManager::completed(ReadOptions how) const {
  how.max_length = how.max_length != 0 ? how.max_length : std::min(usual_length, encoder_->max_context());
  how.stride = how.stride != 0 ? how.stride : std::min(usual_stride, how.max_length);
  if (how.stride < 1 || how.stride > how.max_length) {
    fail_field("stride", "[memory] stride must be from 1 to max_length, {}; got {}", how.max_length, how.stride);
  }
  if (how.max_length > encoder_->max_context()) {
    fail_field(
        "max_length",
        "[memory] max_length must be at most the model's context, {}; got {}",
        encoder_->max_context(),
        how.max_length);
  }
  return how;
}

std::vector<MemoryManager::Planned> MemoryManager::plan(const AddDocuments& add) const {
  const ReadOptions how = completed(add.how);
  const Header header = header_of(how);
  if (add.documents.empty()) {
    fail_field("documents", "[memory] at least one document is needed; got none");
  }
  std::vector<Planned> out;
  std::set<std::string> ids;
  size_t pack = 0; // tokens of the last one
  const auto separator = add.pack ? tokenizer_.encode("\n", false) : std::vector<int32_t>();
  for (size_t i = 0; i < add.documents.size(); ++i) {
    const std::string field = fmt::format("documents[{}]", i);
    Planned planned = plan_one(add.documents[i], how, header, field);
    planned.document.space = add.space;
    Store::check(planned.document, field + ".");
    if (!ids.insert(planned.document.id).second) {
      fail_field(field + ".id", "[memory] two documents have the id {}", planned.document.id);
    }
    const size_t size = planned.document.token_ids.size() + separator.size();
    const size_t room =
        std::max<int64_t>(0, std::min<int64_t>(most_pack, how.max_length - 1 - int64_t(planned.before.size())));
    if (add.pack && !out.empty() && size <= most_packed && pack > 0 && pack + size <= room) {
      const Planned& last = out.back();
      planned.first_of_pack = false;
      planned.before = last.before;
      planned.before.insert(planned.before.end(), last.document.token_ids.begin(), last.document.token_ids.end());
      planned.before.insert(planned.before.end(), separator.begin(), separator.end());
      pack += size;
    } else {
      pack = size <= most_packed ? size : 0;
    }
    out.push_back(std::move(planned));
  }
  return out;
}

int64_t MemoryManager::read_tokens(const Planned& planned) const {
  return static_cast<int64_t>(has_bos(planned) + planned.before.size() + planned.document.token_ids.size());
}

bool MemoryManager::has_bos(const Planned& planned) const {
  return planned.how.bos && bos_ >= 0;
}

Reading MemoryManager::reading(const Planned& planned) const {
  Reading out;
  if (has_bos(planned)) {
    out.ids.push_back(bos_);
  }
  out.ids.insert(out.ids.end(), planned.before.begin(), planned.before.end());
  out.dropped_first = static_cast<int>(out.ids.size());
  out.ids.insert(out.ids.end(), planned.document.token_ids.begin(), planned.document.token_ids.end());
  out.dropped = special_;
  out.stride = planned.how.stride;
  out.max_length = planned.how.max_length;
  return out;
}

void MemoryManager::go_on(const std::atomic<bool>* over) const {
  if (stopping_) {
    fail(Kind::unavailable, "[memory] the server is shutting down");
  }
  if (over && *over) {
    fail(Kind::timeout, "[memory] the request's documents could not be read in time");
  }
}

std::shared_ptr<const Memory> MemoryManager::read(const Planned& planned, const std::function<void(int)>& progress) {
  auto memory = encoder_->read(reading(planned), progress);
  Lock lock(mutex_);
  ++stats_.reads;
  stats_.read_tokens += planned.document.tokens;
  return memory;
}

AddedDocument
MemoryManager::keep(const Planned& planned, const AddDocuments& add, std::shared_ptr<const Memory> memory) {
  Document document = planned.document;
  document.fingerprint = fingerprint_;
  document.embedding = encoder_->embedding(memory);
  document.options = {
      {"bos", planned.how.bos},
      {"stride", planned.how.stride},
      {"max_length", planned.how.max_length},
      {"given", planned.given_ids ? "token_ids" : "text"},
      {"vocabulary", vocabulary_},
      {"before", json::value_from(planned.before)}};
  AddedDocument added{document.id, "", static_cast<int>(document.tokens), document.tokens * encoder_->token_bytes()};
  const MemoryBytes bytes = encoder_->bytes(memory);
  added.uid = store_->put(std::move(document), bytes.pieces, add.if_exists);
  shelve(added.uid, {std::move(memory), added.bytes, nullptr});
  return added;
}

void MemoryManager::read_all(std::vector<Planned>& plans, const AddDocuments& add, const Jobs::Progress& progress) {
  int64_t done = 0;
  for (size_t i = 0; i < plans.size();) {
    size_t end = i + 1;
    while (end < plans.size() && !plans[end].first_of_pack) {
      ++end;
    }
    // The last of a pack has all others before it: one reading has them all.
    const Planned& last = plans[end - 1];
    Planned whole = last;
    if (end - i > 1) {
      const auto header = static_cast<std::ptrdiff_t>(plans[i].before.size());
      auto& ids = whole.document.token_ids;
      ids.insert(ids.begin(), last.before.begin() + header, last.before.end());
      whole.before.resize(header);
      whole.document.tokens = kept(ids).size();
    }
    auto memory = read(whole, [&](int tokens) { progress.tokens(done + tokens); });
    done += read_tokens(whole);
    std::vector<std::shared_ptr<const Memory>> parts{memory};
    if (end - i > 1) {
      std::vector<std::pair<int, int>> places;
      for (size_t j = i; j < end; ++j) {
        const auto& before = plans[j].before;
        const std::vector<int32_t> others(
            before.begin() + static_cast<std::ptrdiff_t>(plans[i].before.size()), before.end());
        places.emplace_back(static_cast<int>(kept(others).size()), static_cast<int>(plans[j].document.tokens));
      }
      parts = encoder_->split(memory, places);
    }
    for (size_t j = i; j < end; ++j) {
      progress.document(keep(plans[j], add, std::move(parts[j - i])));
    }
    i = end;
  }
  progress.tokens(done);
}

std::string MemoryManager::submit(AddDocuments add, Jobs::Ended ended) {
  auto plans = std::make_shared<std::vector<Planned>>(plan(add));
  JobState state;
  state.space = add.space;
  state.documents_total = plans->size();
  for (size_t i = 0; i < plans->size(); ++i) {
    const Planned& planned = (*plans)[i];
    const bool last = i + 1 == plans->size() || (*plans)[i + 1].first_of_pack;
    state.tokens_total += last ? read_tokens(planned) : 0;
  }
  add.documents.clear();
  return jobs_.submit(
      std::move(state),
      [this, plans, add = std::move(add)](const Jobs::Progress& progress) { read_all(*plans, add, progress); },
      std::move(ended));
}

std::vector<AddedDocument> MemoryManager::add(AddDocuments add) {
  std::promise<JobState> done;
  submit(std::move(add), [&](const JobState& job) { done.set_value(job); });
  JobState job = done.get_future().get();
  if (job.error) {
    throw *job.error;
  }
  return std::move(job.documents);
}

int MemoryManager::add_memories(
    const std::string& space,
    const std::string& id,
    std::vector<int32_t> tokens,
    const ReadOptions& how) {
  AddDocuments one{.space = space, .documents = {}, .how = how};
  one.documents.push_back({.id = id, .text = std::nullopt, .ids = std::move(tokens)});
  return add(std::move(one)).front().tokens;
}

MemoryStats MemoryManager::stats() const {
  Lock lock(mutex_);
  MemoryStats out = stats_;
  out.ram_bytes = shelf_.weight();
  out.ram_documents = shelf_.size();
  out.joined_bytes = joined_bytes();
  out.jobs = jobs_.count();
  return out;
}

} // namespace parallm
