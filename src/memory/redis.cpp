// Records in Redis 8, by hiredis; vectors in its vector sets. With "P" for the prefix and N for a namespace:
//
//   P:changes        string  counts changes of the store
//   P:versions       hash    N -> P:changes at its last change
//   P:tokens         hash    N -> the sum of its documents' tokens
//   P:uids           set     every version that is there
//   P:records:N      hash    id -> the record as JSON, with "dimensions" of its vector
//   P:contents:N     hash    id -> text and token ids as JSON
//   P:embeddings:N   hash    id -> float32, little-endian (a vector set gives them back only about right)
//   P:ids:N          zset    every id, all of score 0: in the order of their bytes
//   P:vectors:D:N    vector set of the vectors of D dimensions, element id, with the metadata as attributes
//
// Every change and every selection is one script, so that nobody sees half of it and a crash leaves none of it.
// Similarity is exact (TRUTH) up to `exact` documents in a namespace; above, by the vector set's HNSW graph. A vector
// set's filter knows no types and few characters, so an attribute's name is a letter for the type (s, n, b) and the key
// in hex, and a string is in hex too.

#include "base/error.h"
#include "base/log.h"
#include "memory/backends.h"
#include "memory/pool.h"
#include "memory/record_json.h"
#include "memory/similarity.h"

#include <hiredis/hiredis.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace parallm {

namespace {

constexpr int most_tries = 100;

// ARGV: prefix, namespace, id. Gives record, contents, embedding.
constexpr const char* get_script = R"(
  local p, n, id = ARGV[1], ARGV[2], ARGV[3]
  return {redis.call('HGET', p .. ':records:' .. n, id), redis.call('HGET', p .. ':contents:' .. n, id),
          redis.call('HGET', p .. ':embeddings:' .. n, id)}
)";

constexpr const char* removal = R"(
  local function remove(p, n, id)
    local record = redis.call('HGET', p .. ':records:' .. n, id)
    if not record then return false end
    record = cjson.decode(record)
    if record.dimensions > 0 then redis.call('VREM', p .. ':vectors:' .. record.dimensions .. ':' .. n, id) end
    for _, key in ipairs({':records:', ':contents:', ':embeddings:'}) do redis.call('HDEL', p .. key .. n, id) end
    redis.call('ZREM', p .. ':ids:' .. n, id)
    redis.call('SREM', p .. ':uids', record.uid)
    redis.call('HINCRBY', p .. ':tokens', n, -record.tokens)
    return record.uid
  end
  local function changed(p, n) redis.call('HSET', p .. ':versions', n, redis.call('INCR', p .. ':changes')) end
)";

// ARGV: prefix, namespace, id, uid, fail ("1": where the id is there), record, contents, tokens, dimensions, embedding,
// attributes. Gives {existed, uid of what went or ''}.
constexpr const char* put_script = R"(
  local p, n, id = ARGV[1], ARGV[2], ARGV[3]
  if ARGV[5] == '1' and redis.call('HEXISTS', p .. ':records:' .. n, id) == 1 then return {1, ''} end
  local old = remove(p, n, id)
  if ARGV[9] ~= '0' then
    redis.call('VADD', p .. ':vectors:' .. ARGV[9] .. ':' .. n, 'FP32', ARGV[10], id, 'NOQUANT', 'SETATTR', ARGV[11])
    redis.call('HSET', p .. ':embeddings:' .. n, id, ARGV[10])
  end
  redis.call('HSET', p .. ':records:' .. n, id, ARGV[6])
  redis.call('HSET', p .. ':contents:' .. n, id, ARGV[7])
  redis.call('ZADD', p .. ':ids:' .. n, 0, id)
  redis.call('SADD', p .. ':uids', ARGV[4])
  redis.call('HINCRBY', p .. ':tokens', n, ARGV[8])
  changed(p, n)
  return {0, old or ''}
)";

// ARGV: prefix, namespace, its version when the ids were chosen, ids. Gives uids; nil where the version is another.
constexpr const char* erase_script = R"(
  local p, n = ARGV[1], ARGV[2]
  if (redis.call('HGET', p .. ':versions', n) or '0') ~= ARGV[3] then return false end
  local uids = {}
  for i = 4, #ARGV do
    local uid = remove(p, n, ARGV[i])
    if uid then uids[#uids + 1] = uid end
  end
  if #uids > 0 then changed(p, n) end
  return uids
)";

// ARGV: prefix, contents ("1"), way, embedding, its dimensions, top, filter, exact, number of namespaces, those, ids.
// Gives {version, hits} of each namespace; a hit is {score, record, contents, embedding}. Way "near": the hits are
// filtered and the most similar; "all": the caller does both, by the embeddings; "plain": the caller filters.
constexpr const char* select_script = R"(
  local p, contents, way = ARGV[1], ARGV[2] == '1', ARGV[3]
  local top, exact, spaces = tonumber(ARGV[6]), tonumber(ARGV[8]), tonumber(ARGV[9])
  local ids = {}
  for i = 10 + spaces, #ARGV do ids[#ids + 1] = ARGV[i] end
  local function near(key)
    local card = redis.call('VCARD', key)
    if card == 0 then return {} end
    local count = top
    if top == 0 or top > card then count = card end
    local query = {'VSIM', key, 'FP32', ARGV[4], 'WITHSCORES', 'COUNT', count}
    if ARGV[7] ~= '' then query[#query + 1] = 'FILTER'; query[#query + 1] = ARGV[7] end
    if card > exact then
      local found = redis.call(unpack(query))
      if #found == 2 * count then return found end
    end
    query[#query + 1] = 'TRUTH'
    return redis.call(unpack(query))
  end
  local out = {}
  for s = 10, 9 + spaces do
    local n, hits = ARGV[s], {}
    local function take(id, score)
      local record = redis.call('HGET', p .. ':records:' .. n, id)
      if not record then return end
      local embedding = (contents or way == 'all') and redis.call('HGET', p .. ':embeddings:' .. n, id)
      hits[#hits + 1] = {score, record, contents and redis.call('HGET', p .. ':contents:' .. n, id), embedding}
    end
    if way == 'near' then
      local found = near(p .. ':vectors:' .. ARGV[5] .. ':' .. n)
      for i = 1, #found, 2 do take(found[i], found[i + 1]) end
    else
      local chosen = ids
      if #ids == 0 then chosen = redis.call('HKEYS', p .. ':records:' .. n) end
      for _, id in ipairs(chosen) do take(id, '') end
    end
    out[#out + 1] = {redis.call('HGET', p .. ':versions', n) or '0', hits}
  end
  return out
)";

// ARGV: prefix. Gives name, documents, tokens, version of each in turn.
constexpr const char* namespaces_script = R"(
  local p, out = ARGV[1], {}
  local versions = redis.call('HGETALL', p .. ':versions')
  for i = 1, #versions, 2 do
    local n = versions[i]
    local count = redis.call('HLEN', p .. ':records:' .. n)
    if count > 0 then
      for _, x in ipairs({n, tostring(count), redis.call('HGET', p .. ':tokens', n), versions[i + 1]}) do
        out[#out + 1] = x
      end
    end
  end
  return out
)";

class Answer {
 public:
  Answer() = default;
  explicit Answer(void* reply) : owner_(reply, freeReplyObject), reply_(static_cast<redisReply*>(reply)) {}

  bool nil() const {
    return reply_->type == REDIS_REPLY_NIL;
  }
  bool is_error() const {
    return reply_->type == REDIS_REPLY_ERROR;
  }
  std::string_view text() const {
    return reply_->str == nullptr ? std::string_view() : std::string_view(reply_->str, reply_->len);
  }
  std::string string() const {
    return std::string(text());
  }
  int64_t integer() const {
    return reply_->integer;
  }
  uint64_t number() const {
    return std::strtoull(string().c_str(), nullptr, 10);
  }
  size_t size() const {
    return reply_->elements;
  }
  Answer at(size_t i) const {
    check(reply_->type == REDIS_REPLY_ARRAY && i < reply_->elements, "Redis gives as many elements as asked for");
    Answer part;
    part.owner_ = owner_;
    part.reply_ = reply_->element[i];
    return part;
  }

 private:
  std::shared_ptr<void> owner_;
  const redisReply* reply_ = nullptr;
};

using Words = std::vector<std::string>;

class Connection {
 public:
  Connection(const Address& address, int timeout_ms) : shown_(address.shown()) {
    const auto time = [](int ms) { return timeval{ms / 1000, ms % 1000 * 1000}; };
    constexpr int connect_ms = 5000;
    context_.reset(redisConnectWithTimeout(
        address.host.c_str(), address.port > 0 ? address.port : 6379, time(std::min(timeout_ms, connect_ms))));
    if (!context_ || context_->err != 0) {
      fail_lost();
    }
    redisSetTimeout(context_.get(), time(timeout_ms));
    redisEnableKeepAlive(context_.get());
    if (!address.password.empty()) {
      ask(address.user.empty() ? Words{"AUTH", address.password} : Words{"AUTH", address.user, address.password});
    }
    if (!address.path.empty()) {
      ask({"SELECT", address.path});
    }
  }

  Answer ask(const Words& words) {
    Answer answer = try_ask(words);
    if (answer.is_error()) {
      bool passing = false;
      for (const char* kind :
           {"OOM",
            "READONLY",
            "LOADING",
            "MASTERDOWN",
            "CLUSTERDOWN",
            "MISCONF",
            "BUSY",
            "NOREPLICAS",
            "TRYAGAIN",
            "WRONGPASS",
            "NOAUTH",
            "NOPERM",
            "ERR max number of clients"}) {
        passing = passing || answer.text().find(kind) != std::string_view::npos;
      }
      fail(passing ? Kind::unavailable : Kind::internal, "[memory] {}: {}", shown_, answer.text());
    }
    return answer;
  }

  /** The answer may be an error of the server's. */
  Answer try_ask(const Words& words) {
    std::vector<const char*> bytes;
    std::vector<size_t> sizes;
    for (const std::string& word : words) {
      bytes.push_back(word.data());
      sizes.push_back(word.size());
    }
    void* reply = redisCommandArgv(context_.get(), static_cast<int>(words.size()), bytes.data(), sizes.data());
    if (reply == nullptr) {
      fail_lost();
    }
    return Answer(reply);
  }

  Answer run(const std::string& script, Words words) {
    words.insert(words.begin(), {"EVAL", script, "0"});
    return ask(words);
  }

  bool good() const {
    pollfd socket{context_->fd, POLLIN, 0};
    return context_->err == 0 && ::poll(&socket, 1, 0) == 0;
  }

 private:
  struct Free {
    void operator()(redisContext* context) const {
      redisFree(context);
    }
  };

  [[noreturn]] void fail_lost() const {
    const bool slow = context_ && context_->err == REDIS_ERR_IO && (errno == EAGAIN || errno == EWOULDBLOCK);
    fail(
        Kind::unavailable,
        "[memory] {}: {}",
        shown_,
        !context_  ? "out of memory"
            : slow ? "no answer in time"
                   : context_->errstr);
  }

  std::string shown_;
  std::unique_ptr<redisContext, Free> context_;
};

std::string hex(std::string_view bytes) {
  std::string out;
  for (const unsigned char c : bytes) {
    out += fmt::format("{:02x}", c);
  }
  return out;
}

std::string attribute(std::string_view key, const json::value& value) {
  return (value.is_string() ? "s" : value.is_bool() ? "b" : "n") + hex(key);
}

/** As an attribute's value and in a filter. */
std::string literal(const json::value& value) {
  if (value.is_string()) {
    return '"' + hex(value.get_string()) + '"';
  }
  return value.is_bool() ? (value.get_bool() ? "1" : "0") : fmt::format("{:.17g}", value.to_number<double>());
}

/** Whether the filter's numbers are of the kind that Redis reads. */
bool can_express(const Filter& filter) {
  return std::all_of(filter.begin(), filter.end(), [](const Condition& condition) {
    return std::all_of(condition.values.begin(), condition.values.end(), [](const json::value& value) {
      return value.is_string() || literal(value).find('e') == std::string::npos;
    });
  });
}

std::string attributes(const json::object& metadata) {
  std::string out;
  for (const auto& [key, value] : metadata) {
    out += fmt::format("{}\"{}\":{}", out.empty() ? "" : ",", attribute(key, value), literal(value));
  }
  return '{' + out + '}';
}

std::string expression(const Filter& filter) {
  std::string out;
  for (const Condition& condition : filter) {
    std::string values;
    for (const json::value& value : condition.values) {
      values += (values.empty() ? "" : ", ") + literal(value);
    }
    constexpr const char* signs[] = {"==", "!=", "in", "<", "<=", ">", ">="}; // by Condition::Op
    const bool list = condition.op == Condition::Op::in;
    out += fmt::format(
        "{}.{} {} {}{}{}",
        out.empty() ? "" : " and ",
        attribute(condition.key, condition.values[0]),
        signs[static_cast<int>(condition.op)],
        list ? "[" : "",
        values,
        list ? "]" : "");
  }
  return out;
}

Document read_record(const Answer& record) {
  return record_of(parse_json(record.text(), "a record"));
}

class RedisRecords : public Records {
 public:
  RedisRecords(std::function<std::unique_ptr<Connection>()> connect, std::string prefix, size_t exact)
      : pool_(std::move(connect)), prefix_(std::move(prefix)), exact_(exact) {
    const auto connection = pool_.borrow();
    const Answer known = connection->ask({"COMMAND", "INFO", "VADD"});
    if (known.size() == 0 || known.at(0).nil()) {
      fail(Kind::invalid, "[memory] redis: needs vector sets, which Redis has from 8.0 on");
    }
    const Answer policy = connection->try_ask({"CONFIG", "GET", "maxmemory-policy"}); // may be forbidden
    if (!policy.is_error() && policy.size() == 2 && policy.at(1).text() != "noeviction") {
      spdlog::warn(
          "[memory] this Redis drops keys when its memory is full (maxmemory-policy {}): memories may vanish",
          policy.at(1).text());
    }
  }

  Put put(const Document& document, IfExists if_exists) override {
    json::object record = record_json(document);
    record["dimensions"] = document.embedding.size();
    const Answer done = pool_.borrow()->run(
        std::string(removal) + put_script,
        {prefix_,
         document.space,
         document.id,
         document.uid,
         if_exists == IfExists::fail ? "1" : "0",
         json::serialize(record),
         contents_json(document),
         std::to_string(document.tokens),
         std::to_string(document.embedding.size()),
         std::string(vector_bytes(document.embedding)),
         attributes(document.metadata)});
    return {done.at(0).integer() == 1, done.at(1).string()};
  }

  std::optional<Document> get(const std::string& space, const std::string& id) override {
    const Answer found = pool_.borrow()->run(get_script, {prefix_, space, id});
    if (found.at(0).nil()) {
      return {};
    }
    Document document = read_record(found.at(0));
    read_contents(found.at(1).text(), document);
    document.embedding = vector_of(found.at(2).text());
    return document;
  }

  Page list(const std::string& space, const std::string& after, size_t limit, const Filter& filter) override {
    constexpr size_t least = 256; // a filter may pass over many
    const size_t at_once = std::max(least, std::min<size_t>(limit, 10'000) + 1);
    const auto connection = pool_.borrow();
    Page page;
    for (std::string last = after;;) {
      const Answer ids = connection->ask(
          {"ZRANGEBYLEX",
           key("ids", space),
           last.empty() ? "-" : "(" + last,
           "+",
           "LIMIT",
           "0",
           std::to_string(at_once)});
      if (ids.size() == 0) {
        return page;
      }
      Words words = {"HMGET", key("records", space)};
      for (size_t i = 0; i < ids.size(); ++i) {
        words.push_back(ids.at(i).string());
      }
      last = words.back();
      const Answer records = connection->ask(words);
      for (size_t i = 0; i < records.size(); ++i) {
        if (records.at(i).nil()) { // erased since
          continue;
        }
        Document document = read_record(records.at(i));
        if (!matches(filter, document.metadata)) {
          continue;
        }
        if (page.documents.size() == limit) {
          page.more = true;
          return page;
        }
        page.documents.push_back(std::move(document));
      }
    }
  }

  std::vector<Namespace> namespaces() override {
    const Answer found = pool_.borrow()->run(namespaces_script, {prefix_});
    std::vector<Namespace> all;
    for (size_t i = 0; i + 3 < found.size(); i += 4) {
      all.push_back(
          {found.at(i).string(), found.at(i + 1).number(), found.at(i + 2).number(), found.at(i + 3).number()});
    }
    return all;
  }

  Selection select(const Selector& selector) override {
    const auto connection = pool_.borrow();
    const Answer found = ask(*connection, selector);
    Selection selection;
    for (size_t i = 0; i < found.size(); ++i) {
      selection.versions.push_back(found.at(i).at(0).number());
      const Answer hits = found.at(i).at(1);
      for (size_t j = 0; j < hits.size(); ++j) {
        add_hit(hits.at(j), selector, selection.hits);
      }
    }
    order_hits(selection.hits, selector);
    return selection;
  }

  std::vector<std::string> erase(const std::string& space, const std::vector<std::string>& ids, const Filter& filter)
      override {
    const auto connection = pool_.borrow();
    for (int tries = 0; tries < most_tries; ++tries) {
      const Answer found = ask(*connection, {.spaces = {space}, .ids = ids});
      Words words = {prefix_, space, found.at(0).at(0).string()};
      const Answer hits = found.at(0).at(1);
      for (size_t i = 0; i < hits.size(); ++i) {
        const Document document = read_record(hits.at(i).at(1));
        if (matches(filter, document.metadata)) {
          words.push_back(document.id);
        }
      }
      const Answer gone = connection->run(std::string(removal) + erase_script, words);
      if (!gone.nil()) {
        std::vector<std::string> uids;
        for (size_t i = 0; i < gone.size(); ++i) {
          uids.push_back(gone.at(i).string());
        }
        return uids;
      }
    }
    fail(Kind::unavailable, "[memory] others changed namespace {} {} times meanwhile", space, most_tries);
  }

  uint64_t version(const std::string& space) override {
    const Answer found = pool_.borrow()->ask({"HGET", prefix_ + ":versions", space});
    return found.nil() ? 0 : found.number();
  }

  std::vector<bool> known(const std::vector<std::string>& uids) override {
    Words words = {"SMISMEMBER", prefix_ + ":uids"};
    words.insert(words.end(), uids.begin(), uids.end());
    const Answer found = pool_.borrow()->ask(words);
    std::vector<bool> known;
    for (size_t i = 0; i < uids.size(); ++i) {
      known.push_back(found.at(i).integer() == 1);
    }
    return known;
  }

 private:
  std::string key(const char* kind, const std::string& space) const {
    return prefix_ + ":" + kind + ":" + space;
  }

  Answer ask(Connection& connection, const Selector& selector) const {
    Words words = {
        prefix_,
        selector.contents ? "1" : "0",
        selector.embedding.empty() ? "plain"
            : asks_near(selector)  ? "near"
                                   : "all",
        std::string(vector_bytes(selector.embedding)),
        std::to_string(selector.embedding.size()),
        std::to_string(selector.top),
        asks_near(selector) ? expression(selector.filter) : "",
        std::to_string(exact_),
        std::to_string(selector.spaces.size())};
    words.insert(words.end(), selector.spaces.begin(), selector.spaces.end());
    words.insert(words.end(), selector.ids.begin(), selector.ids.end());
    return connection.run(select_script, words);
  }

  static bool asks_near(const Selector& selector) {
    return !selector.embedding.empty() && selector.ids.empty() && can_express(selector.filter);
  }

  static void add_hit(const Answer& found, const Selector& selector, std::vector<Hit>& hits) {
    Hit hit{read_record(found.at(1))};
    if (!matches(selector.filter, hit.document.metadata)) {
      return;
    }
    const std::vector<float> embedding = vector_of(found.at(3).text());
    if (asks_near(selector)) {
      constexpr double scale = 2, offset = 1; // a vector set's score is (1 + cosine) / 2
      hit.similarity = static_cast<float>(scale * std::strtod(found.at(0).string().c_str(), nullptr) - offset);
    } else if (!selector.embedding.empty()) {
      if (embedding.size() != selector.embedding.size()) {
        return;
      }
      hit.similarity = cosine(embedding, selector.embedding);
    }
    if (selector.contents) {
      read_contents(found.at(2).text(), hit.document);
      hit.document.embedding = embedding;
    }
    hits.push_back(std::move(hit));
  }

  Pool<Connection> pool_;
  const std::string prefix_;
  const size_t exact_;
};

} // namespace

std::unique_ptr<Records> open_redis(Address& address) {
  if (address.host.empty()) {
    address.host = "127.0.0.1";
  }
  const int timeout = address.take_timeout();
  const std::string prefix = address.take("prefix", "mlx_parallm_memory");
  const size_t exact = address.take_exact();
  return std::make_unique<RedisRecords>(
      [address, timeout] { return std::make_unique<Connection>(address, timeout); }, prefix, exact);
}

} // namespace parallm
