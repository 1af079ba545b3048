//! Constrained output: llguidance over a tokenizer's own pieces.
use crate::tokenizer::Text;
use anyhow::{anyhow, bail, ensure, Result};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{json, Value};
use std::sync::Arc;
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

struct Env {
    text: Arc<Text>,
    trie: TokTrie,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if !self.tokenize_is_canonical() {
            return self.trie.greedy_tokenize(bytes);
        }
        self.trie.tokenize_with_greedy_fallback(bytes, |s| {
            self.text.encode(s, false).unwrap_or_else(|_| self.trie.greedy_tokenize(s.as_bytes()))
        })
    }

    /// A tokenizer that puts a space before a text gives other ids for a text's middle than a model would.
    fn tokenize_is_canonical(&self) -> bool {
        self.text.decoding.is_byte_level()
    }
}

pub struct Grammars {
    factory: ParserFactory,
    vocabulary: usize,
}

pub struct Grammar {
    matcher: Matcher,
    vocabulary: usize,
    end_ids: Vec<u32>,
}

/// Where the schema says nothing about it: room for indentation, but no endless white space, which weak models fall into.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";

impl Grammars {
    pub fn open(text: Arc<Text>, vocabulary: usize, end_ids: &[u32]) -> Result<Grammars> {
        ensure!(vocabulary >= text.pieces.len(), "{vocabulary} logits for {} tokens", text.pieces.len());
        ensure!(!end_ids.is_empty(), "no end token");
        if let Some(id) = end_ids.iter().find(|&&id| id as usize >= vocabulary) {
            bail!("end token {id} is outside the vocabulary of {vocabulary}");
        }
        // Ids without a piece stay out of the trie: they are never allowed.
        let mut words = vec![Vec::new(); vocabulary];
        for (word, piece) in words.iter_mut().zip(&text.pieces) {
            if piece.special {
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
            }
            word.extend_from_slice(&piece.bytes);
        }
        let trie = TokTrie::from(&TokRxInfo::new(vocabulary as u32, end_ids[0]), &words).with_eos_tokens(end_ids);
        let env: TokEnv = Arc::new(Env { text, trie });
        let mut factory = ParserFactory::new_simple(&env)?;
        // Their texts would hold the grammar and the tokens so far; and the library writes to standard error by itself.
        factory.limits_mut().verbose_errors = false;
        factory.quiet();
        Ok(Grammars { factory, vocabulary })
    }

    pub fn compile(&self, kind: u32, source: &str) -> Result<Grammar> {
        let grammar = match kind {
            0 => TopLevelGrammar::from_json_schema(bounded(
                serde_json::from_str(source).map_err(|e| anyhow!("the schema is not JSON: {e}"))?,
            )),
            1 => TopLevelGrammar::from_json_schema(bounded(json!({"type": "object"}))),
            2 => TopLevelGrammar::from_regex(source),
            3 => TopLevelGrammar::from_lark(source.to_string()),
            _ => bail!("unknown grammar kind {kind}"),
        };
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            bail!("{error}");
        }
        let end_ids = self.factory.tok_env().tok_trie().eos_tokens().to_vec();
        Ok(Grammar { matcher, vocabulary: self.vocabulary, end_ids })
    }
}

fn bounded(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": WHITESPACE }));
    }
    schema
}

impl Grammar {
    pub fn allowed(&mut self, words: &mut [u32]) -> Result<()> {
        let wanted = self.vocabulary.div_ceil(32);
        ensure!(words.len() == wanted, "{} words for a mask of {wanted}", words.len());
        let mask = self.matcher.compute_mask_or_eos()?;
        words.copy_from_slice(&mask.as_slice()[..wanted]);
        Ok(())
    }

    pub fn accept(&mut self, id: u32) -> Result<()> {
        if self.matcher.is_stopped() {
            ensure!(self.end_ids.contains(&id), "token {id} comes after the grammar's end");
            return Ok(());
        }
        ensure!((id as usize) < self.vocabulary, "token {id} is outside the vocabulary");
        ensure!(self.matcher.try_consume_tokens(&[id])? == 1, "token {id} is not allowed here");
        Ok(())
    }
}
