#include "library/mlx_parallm.h"

#include <condition_variable>
#include <deque>
#include <mutex>

namespace parallm {

namespace {

/** A prompt under way. */
struct Row {
  size_t index;
  Stream stream;
  TextStream text;
  Generation done;
};

/** Which rows have something to read: filled by the engine's thread. */
struct Ready {
  std::mutex mutex;
  std::condition_variable filled;
  std::deque<size_t> indices;
};

} // namespace

struct TextPieces::State {
  LanguageModel* model;
  std::vector<std::string> prompts;
  GenerateOptions options;
  size_t begun = 0;
  size_t ended = 0;
  std::vector<std::optional<Row>> rows;
  std::deque<TextPiece> failed; // never begun
  std::shared_ptr<Ready> ready = std::make_shared<Ready>();

  /** Keeps as many rows in the engine as it can run, and as many again waiting,
   * so that none of its steps runs short and its queue has room for others. */
  void fill() {
    const auto& engine = model->engine().options();
    const size_t most = std::min<size_t>(2 * engine.max_rows, std::max(1, engine.max_waiting / 2));
    while (begun < prompts.size() && begun - ended < most) {
      begin(begun++);
    }
  }

  void begin(size_t index) {
    // A prompt that can't be begun (too long, say) fails alone.
    try {
      submit(index);
    } catch (const Error& error) {
      failed.push_back({index, {}, 0, Generation{.finish = Finish::error, .error = error}});
    }
  }

  void submit(size_t index) {
    Request request;
    request.prompt =
        options.chat ? model->chat_prompt(prompts[index]) : model->tokenizer().encode(prompts[index], true);
    request.max_tokens = options.max_tokens;
    request.sampling = options.sampling;
    // Prompts draw from streams of their own; the same seed gives all of them
    // again.
    request.sampling.seed += index;
    Generation done;
    done.prompt_tokens = static_cast<int>(request.prompt.size());
    // In this order: what throws is made before there is a row.
    Stream stream = model->engine().generate(std::move(request));
    TextStream text(model->tokenizer(), options.stop, true, false, options.sampling.min_tokens);
    rows[index].emplace(Row{index, std::move(stream), std::move(text), std::move(done)});
    rows[index]->stream.on_ready([ready = ready, index] {
      std::lock_guard lock(ready->mutex);
      ready->indices.push_back(index);
      ready->filled.notify_one();
    });
  }

  size_t wait() {
    std::unique_lock lock(ready->mutex);
    ready->filled.wait(lock, [&] { return !ready->indices.empty(); });
    size_t index = ready->indices.front();
    ready->indices.pop_front();
    return index;
  }

  /** Everything that a row has to read now. */
  std::optional<TextPiece> read(size_t index) {
    if (!rows[index]) {
      return {};
    }
    Row& row = *rows[index];
    TextPiece piece{index, {}, 0, {}};
    bool any = false;
    while (auto event = row.stream.try_next()) {
      any = true;
      row.done.error = event->error;
      row.done.cached_tokens = event->cached_tokens;
      if (event->token) {
        ++piece.tokens;
        row.done.ids.push_back(event->token->token.id);
        // An end token is no part of the text.
        if (event->finish != Finish::stop) {
          piece.text += row.text.push(event->token->token.id);
        }
      }
      Finish finish = row.text.stopped() ? Finish::stop : event->finish;
      if (finish != Finish::none) {
        piece.text += row.text.flush();
        row.done.text += piece.text;
        row.done.finish = finish;
        piece.done = std::move(row.done);
        rows[index].reset();
        ++ended;
        return piece;
      }
    }
    if (!any) {
      return {};
    }
    row.done.text += piece.text;
    return piece;
  }
};

TextPieces::TextPieces(std::unique_ptr<State> state) : state_(std::move(state)) {}
TextPieces::TextPieces(TextPieces&&) noexcept = default;
TextPieces::~TextPieces() = default;

std::optional<TextPiece> TextPieces::next() {
  while (true) {
    state_->fill();
    if (!state_->failed.empty()) {
      TextPiece piece = std::move(state_->failed.front());
      state_->failed.pop_front();
      ++state_->ended;
      return piece;
    }
    if (state_->ended == state_->prompts.size()) {
      return {};
    }
    if (auto piece = state_->read(state_->wait())) {
      return piece;
    }
  }
}

Steps::Steps(Stream stream) : stream_(std::move(stream)) {}

std::optional<Scored> Steps::next() {
  if (ended_) {
    return {};
  }
  Event event = stream_.next();
  if (event.error) {
    throw *event.error;
  }
  ended_ = event.finish != Finish::none;
  return event.token;
}

TextPieces
batch_stream_generate_text(LanguageModel& model, std::span<const std::string> prompts, const GenerateOptions& options) {
  auto state = std::make_unique<TextPieces::State>();
  state->model = &model;
  state->prompts.assign(prompts.begin(), prompts.end());
  state->options = options;
  state->rows.resize(prompts.size());
  return TextPieces(std::move(state));
}

TextPieces stream_generate(LanguageModel& model, const std::string& prompt, const GenerateOptions& options) {
  return batch_stream_generate_text(model, {&prompt, 1}, options);
}

std::vector<Generation>
batch_generate(LanguageModel& model, std::span<const std::string> prompts, const GenerateOptions& options) {
  std::vector<Generation> all(prompts.size());
  auto pieces = batch_stream_generate_text(model, prompts, options);
  while (auto piece = pieces.next()) {
    if (piece->done) {
      all[piece->prompt] = std::move(*piece->done);
    }
  }
  return all;
}

Steps generate_step(LanguageModel& model, std::vector<int32_t> prompt, int max_tokens, const Sampling& sampling) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling = sampling;
  return Steps(model.engine().generate(std::move(request)));
}

} // namespace parallm
