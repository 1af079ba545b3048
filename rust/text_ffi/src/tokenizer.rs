//! Hugging Face's tokenizer, and each id's own bytes.
use anyhow::{anyhow, Result};
use serde_json::{json, Value};
use std::collections::HashMap;
use tokenizers::models::bpe::BPE;
use tokenizers::models::ModelWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, DecoderWrapper, Model, NormalizerWrapper, PreTokenizerWrapper, Tokenizer, TokenizerImpl};

/// How a decoder makes a text of tokens, where that can be said id by id.
#[derive(Clone, Copy, PartialEq)]
enum Alphabet {
    /// Each character stands for a byte (GPT-2's map).
    ByteLevel,
    /// A character stands for the space; `<0xNN>` may stand for a byte.
    Spaced { space: Option<char>, byte_fallback: bool },
}

pub struct Decoding {
    alphabet: Option<Alphabet>,
    pub strip: u32,
    pub bare_first: bool,
}

impl Decoding {
    pub fn joins(&self) -> bool {
        self.alphabet.is_some()
    }

    pub fn is_byte_level(&self) -> bool {
        self.alphabet == Some(Alphabet::ByteLevel)
    }

    /// Reads the `decoder` of a tokenizer.json. What is not one of the known shapes stays opaque.
    fn read(decoder: &Value) -> Decoding {
        let opaque = Decoding { alphabet: None, strip: 0, bare_first: false };
        let steps = match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"].as_array().cloned().unwrap_or_default(),
            Some(_) => vec![decoder.clone()],
            None => return opaque,
        };
        let (mut space, mut byte_fallback, mut fused) = (None, false, false);
        let mut found = opaque;
        for step in &steps {
            match step["type"].as_str().unwrap_or("") {
                "ByteLevel" if steps.len() == 1 => found.alphabet = Some(Alphabet::ByteLevel),
                "Replace" if !fused && step["content"] == " " && space.is_none() => {
                    space = single_char(&step["pattern"]["String"]);
                    if space.is_none() {
                        return Decoding { alphabet: None, ..found };
                    }
                }
                "Metaspace" if steps.len() == 1 => {
                    space = single_char(&step["replacement"]);
                    found.bare_first = step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
                }
                "ByteFallback" if !fused => byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && step["content"] == " " && step["stop"] == 0 => {
                    found.strip = step["start"].as_u64().unwrap_or(0) as u32;
                }
                _ => return Decoding { alphabet: None, strip: 0, bare_first: false },
            }
        }
        if found.alphabet.is_none() {
            found.alphabet = Some(Alphabet::Spaced { space, byte_fallback });
        }
        found
    }

    fn piece(&self, token: &str, bytes_of: &HashMap<char, u8>) -> Vec<u8> {
        match self.alphabet {
            Some(Alphabet::ByteLevel) => token
                .chars()
                .map(|c| bytes_of.get(&c).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Some(Alphabet::Spaced { space, byte_fallback }) => {
                if byte_fallback && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') {
                    if let Ok(byte) = u8::from_str_radix(&token[3..5], 16) {
                        return vec![byte];
                    }
                }
                match space {
                    Some(space) => token.replace(space, " ").into_bytes(),
                    None => token.as_bytes().to_vec(),
                }
            }
            None => token.as_bytes().to_vec(),
        }
    }
}

fn single_char(value: &Value) -> Option<char> {
    let mut chars = value.as_str()?.chars();
    let first = chars.next()?;
    chars.next().is_none().then_some(first)
}

/// GPT-2's map: the printable Latin-1 bytes stand for themselves, the others are moved up from U+0100.
fn bytes_of_chars() -> HashMap<char, u8> {
    let mut moved = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (byte as char, byte),
            _ => {
                moved += 1;
                (char::from_u32(moved - 1).unwrap_or('\0'), byte)
            }
        })
        .collect()
}

#[derive(Clone, Default)]
pub struct Piece {
    pub bytes: Vec<u8>,
    pub known: bool,
    pub special: bool,
}

pub struct Text {
    pub tokenizer: Tokenizer,
    pub decoding: Decoding,
    pub pieces: Vec<Piece>,
}

impl Text {
    pub fn open(json: &[u8], additions: &str) -> Result<Text> {
        let mut tokenizer = read(json)?;
        add(&mut tokenizer, additions)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| anyhow!("{e}"))?;
        let decoder = match tokenizer.get_decoder() {
            Some(decoder) => serde_json::to_value(decoder)?,
            None => Value::Null,
        };
        let decoding = Decoding::read(&decoder);
        let pieces = pieces(&tokenizer, &decoding);
        Ok(Text { tokenizer, decoding, pieces })
    }

    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|e| anyhow!("{e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids, and for each where it stands in the text: begin and end, in characters.
    pub fn encode_spans(&self, text: &str, special: bool) -> Result<(Vec<u32>, Vec<u32>)> {
        let encoding = self.tokenizer.encode_char_offsets(text, special).map_err(|e| anyhow!("{e}"))?;
        let spans = encoding.get_offsets().iter().flat_map(|&(begin, end)| [begin as u32, end as u32]);
        Ok((encoding.get_ids().to_vec(), spans.collect()))
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special).map_err(|e| anyhow!("{e}"))
    }
}

type BpeTokenizer = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The library reads a model of an unknown kind through a tree of its JSON, which takes a large vocabulary twice the
/// time; most are BPE.
fn read(json: &[u8]) -> Result<Tokenizer> {
    match serde_json::from_slice::<BpeTokenizer>(json) {
        Ok(tokenizer) => Ok(tokenizer.into()),
        Err(_) => Tokenizer::from_bytes(json).map_err(|e| anyhow!("not a tokenizer.json: {e}")),
    }
}

/// What a model's other files add to its tokenizer.json; include/text_ffi.h has the form.
fn add(tokenizer: &mut Tokenizer, additions: &str) -> Result<()> {
    let mut additions: Value = serde_json::from_str(additions).map_err(|e| anyhow!("additions: {e}"))?;
    if let Some(tokens) = additions.get_mut("added_tokens") {
        let tokens: Vec<AddedToken> =
            serde_json::from_value(tokens.take()).map_err(|e| anyhow!("additions: added_tokens: {e}"))?;
        tokenizer.add_tokens(tokens).map_err(|e| anyhow!("added tokens: {e}"))?;
    }
    // A name for a token that the vocabulary lacks would get an id that the model lacks.
    let special: Vec<AddedToken> = additions["special_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|token| tokenizer.token_to_id(token).is_some())
        .filter(|token| !tokenizer.get_added_vocabulary().get_vocab().contains_key(*token))
        .map(|token| AddedToken::from(token, true))
        .collect();
    tokenizer.add_tokens(special).map_err(|e| anyhow!("special tokens: {e}"))?;
    if let Some(ends) = additions.get("ends") {
        let (begin, end) = (ends["begin"].as_str(), ends["end"].as_str());
        let mut known = serde_json::Map::new();
        for token in begin.iter().chain(end.iter()) {
            let id = tokenizer.token_to_id(token).ok_or_else(|| anyhow!("the vocabulary has no token {token:?}"))?;
            known.insert(token.to_string(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        }
        let special = |token: Option<&str>| token.map(|id| json!({ "SpecialToken": { "id": id, "type_id": 0 } }));
        let parts = |sequence: &str| {
            let sequence = json!({ "Sequence": { "id": sequence, "type_id": 0 } });
            [special(begin), Some(sequence), special(end)].into_iter().flatten().collect::<Vec<Value>>()
        };
        let pair = [parts("A"), parts("B")].concat();
        let processor: PostProcessorWrapper = serde_json::from_value(json!({
            "type": "TemplateProcessing",
            "single": parts("A"),
            "pair": pair,
            "special_tokens": known,
        }))
        .map_err(|e| anyhow!("ends: {e}"))?;
        tokenizer.with_post_processor(Some(processor));
    }
    Ok(())
}

/// The model's tokens by id. Its own list of them is a map, which takes a large vocabulary longer to make than all else
/// here, so that is asked only where ids have gaps.
fn tokens(model: &ModelWrapper) -> Vec<(u32, String)> {
    let size = model.get_vocab_size() as u32;
    let dense: Option<Vec<_>> = (0..size).map(|id| Some((id, model.id_to_token(id)?))).collect();
    dense.unwrap_or_else(|| model.get_vocab().into_iter().map(|(token, id)| (id, token)).collect())
}

fn pieces(tokenizer: &Tokenizer, decoding: &Decoding) -> Vec<Piece> {
    let bytes_of = bytes_of_chars();
    let model: &ModelWrapper = tokenizer.get_model();
    let tokens = tokens(model);
    let added = tokenizer.get_added_tokens_decoder();
    let size = tokens.iter().map(|(id, _)| id).chain(added.keys()).max().map_or(0, |&id| id as usize + 1);
    let mut pieces = vec![Piece::default(); size];
    for (id, token) in &tokens {
        let piece = &mut pieces[*id as usize];
        piece.known = true;
        piece.special = tokenizer.get_added_vocabulary().is_special_token(token);
        piece.bytes = decoding.piece(token, &bytes_of);
    }
    for (&id, token) in &added {
        let piece = &mut pieces[id as usize];
        // An added token that the model knows too (Gemma's runs of spaces) is written in the model's alphabet.
        if !piece.known || model.token_to_id(&token.content) != Some(id) {
            piece.bytes = token.content.as_bytes().to_vec();
        }
        piece.known = true;
        piece.special = tokenizer.get_added_vocabulary().is_special_token(&token.content);
    }
    pieces
}
