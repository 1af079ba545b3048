//! The C entries of include/text_ffi.h, which says what each one promises.
#![allow(clippy::missing_safety_doc)]

mod border;
mod grammar;
mod python;
mod template;
mod tokenizer;

use border::{close, guard, slice, text, Bytes, Ids};
use grammar::{Grammar, Grammars};
use std::sync::Arc;
use template::Template;
use tokenizer::Text;

pub struct TextTokenizer(Arc<Text>);

#[repr(C)]
pub struct Pieces {
    bytes: Bytes,
    ends: Ids,
    flags: Bytes,
    joining: u32,
    strip: u32,
    bare_first: u32,
}

fn boxed<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

#[no_mangle]
pub unsafe extern "C" fn text_bytes_free(bytes: Bytes) {
    bytes.free();
}

#[no_mangle]
pub unsafe extern "C" fn text_ids_free(ids: Ids) {
    ids.free();
}

#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_open(
    json: *const u8,
    size: usize,
    additions: *const u8,
    additions_size: usize,
    out: *mut *mut TextTokenizer,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        let opened = Text::open(slice(json, size), text(additions, additions_size)?)?;
        out.write(boxed(TextTokenizer(Arc::new(opened))));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_close(tokenizer: *mut TextTokenizer) {
    close(tokenizer);
}

#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_encode(
    tokenizer: &TextTokenizer,
    data: *const u8,
    size: usize,
    special: i32,
    out: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        out.write(tokenizer.0.encode(text(data, size)?, special != 0)?.into());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_encode_spans(
    tokenizer: &TextTokenizer,
    data: *const u8,
    size: usize,
    special: i32,
    out: *mut Ids,
    spans: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        let (ids, places) = tokenizer.0.encode_spans(text(data, size)?, special != 0)?;
        out.write(ids.into());
        spans.write(places.into());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_decode(
    tokenizer: &TextTokenizer,
    ids: *const u32,
    size: usize,
    skip_special: i32,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        out.write(tokenizer.0.decode(slice(ids, size), skip_special != 0)?.into_bytes().into());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_pieces(tokenizer: &TextTokenizer, out: *mut Pieces, error: *mut Bytes) -> i32 {
    guard(error, || {
        let (mut bytes, mut ends, mut flags) = (Vec::new(), Vec::new(), Vec::new());
        for piece in &tokenizer.0.pieces {
            bytes.extend_from_slice(&piece.bytes);
            ends.push(u32::try_from(bytes.len())?);
            flags.push(u8::from(piece.known) | u8::from(piece.special) << 1);
        }
        let decoding = &tokenizer.0.decoding;
        out.write(Pieces {
            bytes: bytes.into(),
            ends: ends.into(),
            flags: flags.into(),
            joining: u32::from(!decoding.joins()),
            strip: decoding.strip,
            bare_first: u32::from(decoding.bare_first),
        });
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_pieces_free(pieces: Pieces) {
    pieces.bytes.free();
    pieces.ends.free();
    pieces.flags.free();
}

#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_id(tokenizer: &TextTokenizer, data: *const u8, size: usize) -> i64 {
    let find = || text(data, size).ok().and_then(|token| tokenizer.0.tokenizer.token_to_id(token));
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(find));
    found.ok().flatten().map_or(-1, i64::from)
}

#[no_mangle]
pub unsafe extern "C" fn text_template_open(
    source: *const u8,
    size: usize,
    special_tokens: *const u8,
    special_tokens_size: usize,
    out: *mut *mut Template,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        let template = Template::open(text(source, size)?, text(special_tokens, special_tokens_size)?)?;
        out.write(boxed(template));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_template_close(template: *mut Template) {
    close(template);
}

#[no_mangle]
pub unsafe extern "C" fn text_template_render(
    template: &Template,
    variables: *const u8,
    size: usize,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        out.write(template.render(text(variables, size)?)?.into_bytes().into());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_grammars_open(
    tokenizer: &TextTokenizer,
    vocabulary: usize,
    end_ids: *const u32,
    n_end_ids: usize,
    out: *mut *mut Grammars,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        out.write(boxed(Grammars::open(tokenizer.0.clone(), vocabulary, slice(end_ids, n_end_ids))?));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_grammars_close(grammars: *mut Grammars) {
    close(grammars);
}

#[no_mangle]
pub unsafe extern "C" fn text_grammar_compile(
    grammars: &Grammars,
    kind: u32,
    source: *const u8,
    size: usize,
    out: *mut *mut Grammar,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        out.write(boxed(grammars.compile(kind, text(source, size)?)?));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_grammar_close(grammar: *mut Grammar) {
    close(grammar);
}

#[no_mangle]
pub unsafe extern "C" fn text_grammar_allowed(
    grammar: &mut Grammar,
    words: *mut u32,
    n_words: usize,
    error: *mut Bytes,
) -> i32 {
    guard(error, || {
        let words = if n_words == 0 { &mut [][..] } else { std::slice::from_raw_parts_mut(words, n_words) };
        grammar.allowed(words)
    })
}

#[no_mangle]
pub unsafe extern "C" fn text_grammar_accept(grammar: &mut Grammar, id: u32, error: *mut Bytes) -> i32 {
    guard(error, || grammar.accept(id))
}
