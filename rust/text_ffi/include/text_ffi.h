/* Text to ids and back, chat templates and grammars: Hugging Face's `tokenizers`, minijinja and llguidance.
 *
 * Ownership: what *_open and *_compile give is closed by the matching *_close, once. A text_bytes or text_ids that a
 * call filled is freed by text_bytes_free or text_ids_free, once. What goes in is only read during the call.
 * Threads: any number may use one tokenizer, template or grammars at once; a text_grammar belongs to one at a time.
 * Errors: TEXT_OK, or the reason, with its text in `error` (UTF-8, no NUL at its end). On an error no other output is
 * written. A panic of the Rust side comes back as TEXT_BROKEN; none crosses this border.
 */
#ifndef TEXT_FFI_H
#define TEXT_FFI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct text_tokenizer text_tokenizer;
typedef struct text_template text_template;
typedef struct text_grammars text_grammars;
typedef struct text_grammar text_grammar;

enum { TEXT_OK = 0, TEXT_INVALID = 1, TEXT_BROKEN = 2 };

typedef struct {
  char* data;
  size_t size;
  size_t capacity;
} text_bytes;

typedef struct {
  uint32_t* data;
  size_t size;
  size_t capacity;
} text_ids;

void text_bytes_free(text_bytes bytes);
void text_ids_free(text_ids ids);

/* --- tokenizer --- */

/* How the pieces of a text make the text: all of them joined, or as only the library's own decode knows. */
enum { TEXT_PIECES_JOIN = 0, TEXT_PIECES_OPAQUE = 1 };
enum { TEXT_TOKEN_KNOWN = 1, TEXT_TOKEN_SPECIAL = 2 };

typedef struct {
  text_bytes bytes; /* the pieces of all ids, one after another */
  text_ids ends; /* id i's piece ends before bytes.data[ends.data[i]] and begins where the one before it ends */
  text_bytes flags; /* one for each id: TEXT_TOKEN_* */
  uint32_t joining; /* TEXT_PIECES_* */
  uint32_t strip; /* so many spaces at most are dropped from the beginning of a decoded text */
  uint32_t bare_first; /* 1: a decoded text's first piece loses all its spaces */
} text_pieces;

/* From a tokenizer.json; padding and truncation in it are turned off. additions: a JSON object.
 * "added_tokens": tokens as tokenizer.json's own list has them, without ids; one that is there already takes these
 * flags. "special_tokens": texts; those in the vocabulary become special added tokens, where they are no added tokens
 * yet. "ends": {"begin": token or null, "end": token or null} replaces the post-processor; absent: it stays. */
int text_tokenizer_open(
    const char* json,
    size_t size,
    const char* additions,
    size_t additions_size,
    text_tokenizer** out,
    text_bytes* error);
void text_tokenizer_close(text_tokenizer* tokenizer);
/* text: valid UTF-8. special: 1 adds what the post-processor adds. */
int text_tokenizer_encode(
    const text_tokenizer* tokenizer,
    const char* text,
    size_t size,
    int special,
    text_ids* out,
    text_bytes* error);
/* The same ids; spans: for each of them its begin and end in the text, in characters; twice as many as ids. */
int text_tokenizer_encode_spans(
    const text_tokenizer* tokenizer,
    const char* text,
    size_t size,
    int special,
    text_ids* out,
    text_ids* spans,
    text_bytes* error);
/* Ids that the tokenizer lacks give nothing. */
int text_tokenizer_decode(
    const text_tokenizer* tokenizer,
    const uint32_t* ids,
    size_t size,
    int skip_special,
    text_bytes* out,
    text_bytes* error);
int text_tokenizer_pieces(const text_tokenizer* tokenizer, text_pieces* out, text_bytes* error);
void text_pieces_free(text_pieces pieces);
/* -1: no such entry. */
int64_t text_tokenizer_id(const text_tokenizer* tokenizer, const char* token, size_t size);

/* --- chat template --- */

/* special_tokens: a JSON object of names that the template may use. */
int text_template_open(
    const char* source,
    size_t size,
    const char* special_tokens,
    size_t special_tokens_size,
    text_template** out,
    text_bytes* error);
void text_template_close(text_template* tmpl);
/* variables: a JSON object; it goes before special_tokens. What raise_exception() raised is the error's whole text. */
int text_template_render(
    const text_template* tmpl,
    const char* variables,
    size_t size,
    text_bytes* out,
    text_bytes* error);

/* --- grammars --- */

enum { TEXT_GRAMMAR_JSON_SCHEMA = 0, TEXT_GRAMMAR_JSON_OBJECT = 1, TEXT_GRAMMAR_REGEX = 2, TEXT_GRAMMAR_LARK = 3 };

/* vocabulary: the logits' width, at least the tokenizer's size. end_ids: at least one. */
int text_grammars_open(
    const text_tokenizer* tokenizer,
    size_t vocabulary,
    const uint32_t* end_ids,
    size_t n_end_ids,
    text_grammars** out,
    text_bytes* error);
void text_grammars_close(text_grammars* grammars);
int text_grammar_compile(
    const text_grammars* grammars,
    uint32_t kind,
    const char* source,
    size_t size,
    text_grammar** out,
    text_bytes* error);
void text_grammar_close(text_grammar* grammar);
/* words: (vocabulary + 31) / 32 of them; bit t % 32 of word t / 32 is set where token t may come next. */
int text_grammar_allowed(text_grammar* grammar, uint32_t* words, size_t n_words, text_bytes* error);
int text_grammar_accept(text_grammar* grammar, uint32_t id, text_bytes* error);

#ifdef __cplusplus
}
#endif

#endif
