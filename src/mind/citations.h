// Which parts of a request's memories an answer came from. A part's score is
// the attention that the answer's tokens gave to it, over all heads and layers,
// beyond what it gets from prompts that have nothing to do with it
// (cited_mass): the first tokens of a text draw much of any query, so that
// attention alone names no source. No tensor, any thread.
#pragma once

#include "mind/manager.h"

namespace parallm {

/** A passage: a sentence, or a piece of one that is long. */
struct Citation {
  std::string space; // empty: inlined
  std::string id;
  int token_begin = 0, token_end = 0; // memories of the document
  TextSpan place; // in its text, in characters
  std::string text;
  float score = 0; // for each token of the answer, the mean over heads and layers: 0 to 1; not below 0
  float similarity = 0; // greatest cosine of a key with a query, -1 to 1
  int count = 0; // how often a head chose one of its memories
  std::vector<int> answer_tokens; // those of the answer that gave most to it, from 0
};

struct Citations {
  float mass = 0; // attention that the answer gave to memories, 0 to 1; the rest is for its own text
  std::vector<Citation> list; // the greatest score first; none without a score
};

/** What an answer's tokens used. */
struct AnswerUse {
  MemoryUse whole;
  std::vector<MemoryUse> tokens; // each with what it used most
};

Words make_words(std::string text, std::vector<TextSpan> spans);

/** `by_document`: one entry a document, its best passage, with the others' counts and answer tokens. The view has its
 * texts. */
Citations cite(const MemoryView& view, const AnswerUse& use, bool by_document, int most);

} // namespace parallm
