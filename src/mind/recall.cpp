// What requests have of the documents.
#include "base/hash.h"
#include "base/log.h"
#include "mind/citations.h"
#include "mind/manager.h"
#include "mind/planned.h"
#include "text/text_stream.h"
#include "text/utf8.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace parallm {

namespace {

// Joined documents that are kept ready beyond the requests that use them, and the bytes of all that are in use, in
// units of MemoryOptions::ram_bytes.
constexpr size_t most_joined = 4, joined_share = 2;
constexpr int most_tries = 5;
// The end of a prompt that stands for it when documents are chosen.
constexpr size_t most_query = 512;

void check_known(const Selection& selection, const std::vector<std::string>& spaces, const std::string& field) {
  for (size_t i = 0; i < spaces.size(); ++i) {
    if (selection.versions.at(i) == 0) {
      throw Error(
          Kind::not_found, field, fmt::format("[memory] there is no namespace of this name; got {}", spaces[i]));
    }
  }
}

/** A document went while a request was getting it ready. */
struct Replaced : Error {
  explicit Replaced(const Document& version)
      : Error(
            Kind::unavailable,
            "",
            fmt::format("[memory] {} was replaced or erased while it was being read; ask again", version.id)) {}
};

} // namespace

/** Of several requests that need the same document, one makes it ready, and the others wait for it. */
class MemoryManager::Turn {
 public:
  Turn(MemoryManager& manager, const std::string& name, const std::atomic<bool>* over)
      : manager_(manager), name_(name) {
    Lock lock(manager_.mutex_);
    while (!manager_.turns_.insert(name_).second) {
      manager_.go_on(over);
      lock.wait_until(manager_.turn_, std::chrono::steady_clock::now() + std::chrono::milliseconds(200));
    }
  }
  ~Turn() {
    {
      Lock lock(manager_.mutex_);
      manager_.turns_.erase(name_);
    }
    manager_.turn_.notify_all();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  MemoryManager& manager_;
  const std::string name_;
};

void MemoryManager::check_how(const RecallHow& how) const {
  if (how.top_k < 0) {
    fail_field("top_k", "[memory] top_k must not be negative; got {}", how.top_k);
  }
  if (how.threshold && !(std::abs(*how.threshold) <= 1)) {
    fail_field("similarity_threshold", "[memory] a threshold must be from -1 to 1; got {}", *how.threshold);
  }
  if (how.block_tokens < 1 || how.block_tokens > most_block_tokens) {
    fail_field(
        "block_tokens", "[memory] block_tokens must be from 1 to {}; got {}", most_block_tokens, how.block_tokens);
  }
  if (!(how.unsure_above >= 0) || !std::isfinite(how.unsure_above)) {
    fail_field(
        "on_uncertainty.entropy", "[memory] an entropy must be above 0, or 0 for none; got {}", how.unsure_above);
  }
  if (how.unsure_above > 0 ? how.extra_k < 1 || how.extra_k > most_top_k || how.top_k > most_top_k : how.extra_k != 0) {
    fail_field(
        "on_uncertainty.extra_k",
        "[memory] with an entropy extra_k must be from 1 to {}, else 0; got {}",
        most_top_k,
        how.extra_k);
  }
  if (!how.layers.empty() && static_cast<int>(how.layers.size()) != layers()) {
    fail_field("layers", "[memory] there must be {} layers; got {}", layers(), how.layers.size());
  }
}

std::optional<MemoryManager::Held> MemoryManager::on_shelf(const std::string& name) {
  Lock lock(mutex_);
  const Held* held = shelf_.find(name);
  return held ? std::optional(*held) : std::nullopt;
}

void MemoryManager::shelve(const std::string& name, const Held& held) {
  Lock lock(mutex_);
  shelf_.put(name, held, held.bytes);
}

MemoryManager::Planned MemoryManager::again(const Document& document) const {
  Planned out;
  out.document = document;
  const json::object& options = document.options;
  const auto number = [&](const char* name, int otherwise) {
    const json::value* value = options.if_contains(name);
    return value && value->is_int64() ? static_cast<int>(value->get_int64()) : otherwise;
  };
  const auto text = [&](const char* name) {
    const json::value* value = options.if_contains(name);
    return value && value->is_string() ? std::string(value->get_string()) : std::string();
  };
  const json::value* bos = options.if_contains("bos");
  out.how.bos = !bos || !bos->is_bool() || bos->get_bool();
  out.how.max_length = std::min(number("max_length", 0), encoder_->max_context());
  out.how = completed(out.how);
  out.how.stride = std::min(number("stride", out.how.stride), out.how.max_length);
  out.given_ids = text("given") == "token_ids";
  if (text("vocabulary") == vocabulary_) {
    if (const json::value* before = options.if_contains("before"); before && before->is_array()) {
      out.before = json::value_to<std::vector<int32_t>>(*before);
    }
    return out;
  }
  if (out.given_ids) {
    fail(
        Kind::conflict,
        "[memory] {} in namespace {} was given as token ids of another tokenizer; add it again",
        document.id,
        document.space);
  }
  out.document.token_ids = tokenizer_.encode(document.text, false);
  out.before = document.header.empty() ? std::vector<int32_t>() : tokenizer_.encode(document.header, false);
  out.document.tokens = kept(out.document.token_ids).size();
  return out;
}

Document MemoryManager::with_contents(const Document& version) {
  auto found = store_->get(version.space, version.id);
  if (!found || found->uid != version.uid) {
    throw Replaced(version);
  }
  return std::move(*found);
}

MemoryManager::Held MemoryManager::held(const Document& version, const std::atomic<bool>* over) {
  if (auto held = on_shelf(version.uid)) {
    return *held;
  }
  const Turn turn(*this, version.uid, over);
  if (auto held = on_shelf(version.uid)) {
    return *held;
  }
  go_on(over);
  Held out;
  const FoundTensors found = store_->tensors(version.uid, fingerprint_);
  if (found.state == FoundTensors::State::present) {
    try {
      out.memory = encoder_->open(found.file->path());
      Lock lock(mutex_);
      ++stats_.loads;
    } catch (const std::exception& error) { // its document was erased meanwhile, or it is of no use
      spdlog::warn("{}", error.what());
    }
  }
  if (!out.memory) {
    spdlog::info("[memory] {} in {} is read again", version.id, version.space);
    out.memory = read(again(with_contents(version)), [&](int) { go_on(over); });
    try {
      store_->put_tensors(version.uid, fingerprint_, encoder_->bytes(out.memory).pieces);
    } catch (const Error& error) { // it will be read once more, some day
      spdlog::warn("{}", error.what());
    }
  }
  out.bytes = encoder_->tokens(*out.memory) * encoder_->token_bytes();
  shelve(version.uid, out);
  return out;
}

std::string MemoryManager::inline_name(const Planned& planned) {
  Hash hash;
  for (const auto* ids : {&planned.before, &planned.document.token_ids}) {
    hash.add({reinterpret_cast<const char*>(ids->data()), ids->size() * sizeof(int32_t)});
    hash.add("/");
  }
  hash.add(fmt::format("{}/{}/{}", planned.how.bos, planned.how.stride, planned.how.max_length));
  return "inline:" + hash.hex();
}

MemoryManager::Held MemoryManager::held_inlined(const Planned& planned, const std::atomic<bool>* over) {
  const std::string name = inline_name(planned);
  if (auto held = on_shelf(name)) {
    return *held;
  }
  const Turn turn(*this, name, over);
  if (auto held = on_shelf(name)) {
    return *held;
  }
  Held out;
  out.memory = read(planned, [&](int) { go_on(over); });
  out.bytes = planned.document.tokens * encoder_->token_bytes();
  shelve(name, out);
  return out;
}

std::vector<TextSpan> MemoryManager::spans_of(const Planned& planned) const {
  const auto& ids = planned.document.token_ids;
  std::vector<TextSpan> all;
  if (!planned.given_ids && tokenizer_.encode(planned.document.text, all) != ids) {
    all.clear(); // a text that an older library of tokenizers cut otherwise
  }
  if (all.empty()) {
    TextStream stream(tokenizer_, {});
    uint32_t at = 0;
    for (const int32_t id : ids) {
      const uint32_t end = at + static_cast<uint32_t>(characters(stream.push(id)));
      all.push_back({at, end});
      at = end;
    }
  }
  std::vector<TextSpan> out;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!std::binary_search(special_.begin(), special_.end(), ids[i])) {
      out.push_back(all[i]);
    }
  }
  return out;
}

std::vector<float>
MemoryManager::embedding_of(const std::vector<int32_t>& ids, const std::string& field, const std::atomic<bool>* over) {
  Planned prompt;
  prompt.document.token_ids = ids.size() > most_query ? std::vector(ids.end() - most_query, ids.end()) : ids;
  if (kept(prompt.document.token_ids).empty()) {
    fail_field(field, "[memory] {} must have a token that is not special; got {} tokens", field, ids.size());
  }
  prompt.how = completed({});
  prompt.how.bos = prompt.document.token_ids.front() != bos_;
  return encoder_->embedding(encoder_->read(reading(prompt), [&](int) { go_on(over); }));
}

std::vector<Document> MemoryManager::select(const RecallDocuments& wanted) {
  if (wanted.spaces.empty()) {
    return {};
  }
  Selector selector{
      .spaces = wanted.spaces,
      .ids = wanted.ids,
      .filter = wanted.filter,
      .embedding = {},
      .top = 0,
      .contents = false};
  if (wanted.most > 0) {
    selector.embedding = embedding_of(wanted.prompt, "prompt", wanted.over);
    selector.top = static_cast<size_t>(wanted.most);
  }
  Store::check_spaces(wanted.spaces, wanted.spaces_field);
  Store::check_ids(wanted.ids, wanted.ids_field);
  Selection selection = store_->select(selector);
  check_known(selection, wanted.spaces, wanted.spaces_field);
  std::vector<Document> out;
  for (Hit& hit : selection.hits) {
    out.push_back(std::move(hit.document));
  }
  for (const std::string& id : wanted.ids) {
    if (wanted.most == 0 && wanted.filter.empty() &&
        std::none_of(out.begin(), out.end(), [&](auto& document) { return document.id == id; })) {
      throw Error(
          Kind::not_found,
          wanted.ids_field,
          fmt::format("[memory] no document of this id in these namespaces; got {}", id));
    }
  }
  // An order that doesn't depend on the prompt, so that requests share what is joined.
  std::sort(out.begin(), out.end(), [](auto& a, auto& b) { return std::tie(a.space, a.id) < std::tie(b.space, b.id); });
  return out;
}

std::shared_ptr<const std::vector<float>>
MemoryManager::background_of(const std::string& key, std::shared_ptr<const Memories> memories, const RecallHow& how) {
  {
    Lock lock(mutex_);
    if (const auto* known = backgrounds_.find(key)) {
      return *known;
    }
  }
  auto made = std::make_shared<const std::vector<float>>(encoder_->background(std::move(memories), how));
  Lock lock(mutex_);
  backgrounds_.put(key, made);
  return made;
}

Recall MemoryManager::make_recall(
    const std::string& names,
    std::vector<std::shared_ptr<const Memory>> parts,
    size_t bytes,
    RecallHow how,
    bool cited) {
  std::shared_ptr<const Memories> joined;
  {
    Lock lock(mutex_);
    joined = find_joined(names);
    if (!joined) {
      make_room(bytes);
      joined = encoder_->join(std::move(parts));
      joined_.push_front({names, joined, nullptr, bytes});
    }
    joined_.front().kept = joined;
    size_t kept = 0;
    for (Joined& one : joined_) {
      if (one.kept && ++kept > most_joined) {
        one.kept = nullptr;
      }
    }
  }
  std::string key = fmt::format(
      "{}/{}/{}/{}/{}/{}/",
      names,
      how.top_k,
      how.block_tokens,
      how.contiguous,
      how.by_dot,
      how.threshold ? fmt::format("{}", *how.threshold) : "");
  for (const bool used : how.layers) {
    key += used ? '1' : '0';
  }
  // The key is without on_uncertainty: no KV is shared from the first position on that is computed again.
  how.record = how.record || cited;
  auto background = cited ? background_of(key, joined, how) : nullptr;
  Recall out = encoder_->recall(std::move(joined), std::move(how), std::move(key));
  out.background = std::move(background);
  return out;
}

std::shared_ptr<const Memories> MemoryManager::find_joined(const std::string& names) {
  std::erase_if(joined_, [](const Joined& one) { return one.memories.expired(); });
  const auto known = std::find_if(joined_.begin(), joined_.end(), [&](auto& one) { return one.name == names; });
  if (known == joined_.end()) {
    return nullptr;
  }
  joined_.splice(joined_.begin(), joined_, known);
  return known->memories.lock(); // null where its last request ended this moment
}

/** Lets go of what no request uses until `bytes` more fit beside the rest. */
void MemoryManager::make_room(size_t bytes) {
  const size_t most = joined_share * options_.ram_bytes;
  for (auto one = joined_.rbegin(); one != joined_.rend() && joined_bytes() + bytes > most; ++one) {
    one->kept = nullptr;
  }
  if (const size_t used = joined_bytes(); used + bytes > most) {
    fail(
        Kind::busy,
        "[memory] these documents take {} bytes, beside {} bytes of running requests; there is room for {}",
        bytes,
        used,
        most);
  }
}

size_t MemoryManager::joined_bytes() const {
  size_t sum = 0;
  for (const Joined& one : joined_) {
    sum += one.memories.expired() ? 0 : one.bytes;
  }
  return sum;
}

MemoryView MemoryManager::recall(const RecallDocuments& wanted, const RecallHow& how) {
  for (int tries = 1;; ++tries) {
    try {
      return recall_once(wanted, how);
    } catch (const Replaced&) {
      if (tries == most_tries) {
        throw;
      }
    }
  }
}

MemoryView MemoryManager::recall_once(const RecallDocuments& wanted, const RecallHow& how) {
  check_how(how);
  std::vector<Planned> inlined;
  for (size_t i = 0; i < wanted.inlined.size(); ++i) {
    inlined.push_back(plan_one(wanted.inlined[i], completed({}), {}, fmt::format("memory.inline[{}]", i)));
  }
  std::vector<Document> documents = select(wanted);
  uint64_t tokens = 0;
  for (const Document& document : documents) {
    tokens += document.tokens;
  }
  for (const Planned& planned : inlined) {
    tokens += planned.document.tokens;
  }
  if (tokens * encoder_->token_bytes() > options_.ram_bytes) {
    throw Error(
        Kind::too_large,
        "memory",
        fmt::format(
            "[memory] these documents have {} tokens, which take {} bytes; there is room for {}",
            tokens,
            tokens * encoder_->token_bytes(),
            options_.ram_bytes));
  }
  MemoryView view;
  std::vector<std::shared_ptr<const Memory>> parts;
  Hash names;
  const auto add = [&](const Document& document, Held held, const std::string& name, const auto& planned) {
    RecalledDocument out{.space = document.space, .id = document.id, .begin = view.tokens};
    out.tokens = encoder_->tokens(*held.memory);
    if (wanted.cited) {
      if (!held.words) {
        const Planned whole = planned();
        held.words = std::make_shared<Words>(make_words(whole.document.text, spans_of(whole)));
        shelve(name, held);
      }
      out.words = held.words;
    }
    view.tokens += out.tokens;
    view.documents.push_back(std::move(out));
    parts.push_back(held.memory);
    names.add(name + ",");
  };
  for (const Document& document : documents) {
    add(document, held(document, wanted.over), document.uid, [&] { return again(with_contents(document)); });
  }
  for (const Planned& planned : inlined) {
    add(planned.document, held_inlined(planned, wanted.over), inline_name(planned), [&] { return planned; });
  }
  if (parts.empty()) {
    return view;
  }
  view.recall = make_recall(names.hex(), std::move(parts), view.tokens * encoder_->token_bytes(), how, wanted.cited);
  Lock lock(mutex_);
  ++stats_.views;
  stats_.view_tokens += view.tokens;
  return view;
}

Recall MemoryManager::recall(const std::string& space, const std::vector<std::string>& ids, const RecallHow& how) {
  RecallDocuments wanted;
  wanted.spaces = {space};
  wanted.ids = ids;
  return recall(wanted, how).recall;
}

std::vector<FoundDocument> MemoryManager::query(
    const std::vector<std::string>& spaces,
    const Filter& filter,
    const std::vector<int32_t>& ids,
    int top) {
  Store::check_spaces(spaces, "namespaces");
  Selector selector{
      .spaces = spaces,
      .ids = {},
      .filter = filter,
      .embedding = embedding_of(ids, "input", nullptr),
      .top = static_cast<size_t>(top),
      .contents = true};
  Selection selection = store_->select(selector);
  check_known(selection, spaces, "namespaces");
  std::vector<FoundDocument> out;
  for (Hit& hit : selection.hits) {
    const bool ours = hit.document.fingerprint == fingerprint_;
    out.push_back({std::move(hit.document), ours ? std::optional(hit.similarity) : std::nullopt});
  }
  return out;
}

} // namespace parallm
