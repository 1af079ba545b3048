//! Chat templates: minijinja set up to write what transformers' Jinja2 writes.
use crate::python;
use anyhow::{anyhow, ensure, Result};
use minijinja::value::{from_args, Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::fmt;

/// Ends a template that runs away; a long chat takes some hundred thousand instructions.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat";

pub struct Template {
    environment: Environment<'static>,
}

/// What a template raised by itself: its text goes to the caller as it is.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Template {
    pub fn open(source: &str, special_tokens: &str) -> Result<Template> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        // Debug puts the variables, so what users wrote, into error texts.
        environment.set_debug(false);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::str_of(value))?));
        environment.set_unknown_method_callback(unknown_method);
        environment.add_filter("tojson", |value: &Value, args: Rest<Value>, named: Kwargs| {
            python::tojson(value, args.0, named)
        });
        environment.add_filter("string", |value: &Value| python::str_of(value));
        environment.add_filter("trim", |value: &Value, chars: Option<String>| strip(&python::str_of(value), chars));
        environment.add_test("iterable", is_iterable);
        environment.add_function("raise_exception", |text: &Value| -> Result<Value, Error> {
            let text = python::str_of(text);
            Err(Error::new(ErrorKind::InvalidOperation, text.clone()).with_source(Raised(text)))
        });
        environment.add_function("strftime_now", |format: &str| strftime_now(format));
        // Globals stand behind what render is given. transformers always defines these two.
        environment.add_global("tools", ());
        environment.add_global("documents", ());
        for (name, value) in object(special_tokens, "special_tokens")? {
            environment.add_global(name, Value::from_serialize(value));
        }
        let source = without_generation(source);
        environment.add_template_owned(NAME, source).map_err(|e| anyhow!("{}", explained(&e)))?;
        Ok(Template { environment })
    }

    pub fn render(&self, variables: &str) -> Result<String> {
        let variables = Value::from_serialize(object(variables, "variables")?);
        let template = self.environment.get_template(NAME)?;
        template.render(variables).map_err(|e| anyhow!("{}", explained(&e)))
    }
}

fn object(json: &str, what: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
    let value: serde_json::Value = serde_json::from_str(json).map_err(|e| anyhow!("{what}: {e}"))?;
    ensure!(value.is_object(), "{what}: not a JSON object");
    match value {
        serde_json::Value::Object(map) => Ok(map),
        _ => unreachable!(),
    }
}

fn explained(error: &Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut text = String::new();
    while let Some(error) = cause {
        if let Some(Raised(raised)) = error.downcast_ref::<Raised>() {
            return raised.clone();
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// `{% generation %}` marks the assistant's text for training and changes nothing else; like a macro's body it has
/// its own scope, so `with` stands for it.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let instead = match name {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => name,
        };
        out.push_str(&rest[..start + 2]);
        out.push_str(&if instead == name { tag.to_string() } else { tag.replacen(name, instead, 1) });
        out.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    out + rest
}

fn is_iterable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => false,
        ValueKind::Undefined | ValueKind::String => true,
        _ => value.try_iter().is_ok(),
    }
}

/// Python's str.strip().
fn strip(text: &str, chars: Option<String>) -> String {
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        None => text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).to_string(),
    }
}

/// minijinja-contrib's Python methods, and some that it lacks.
fn unknown_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            "partition" | "rpartition" => {
                let (at,): (&str,) = from_args(args)?;
                let parts = match method {
                    "partition" => text.split_once(at).map(|(a, b)| [a, at, b]).unwrap_or([text, "", ""]),
                    _ => text.rsplit_once(at).map(|(a, b)| [a, at, b]).unwrap_or(["", "", text]),
                };
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            "rsplit" => return rsplit(text, args),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (at, limit): (&str, Option<usize>) = from_args(args)?;
    let mut parts: Vec<&str> = match limit {
        Some(limit) => text.rsplitn(limit + 1, at).collect(),
        None => text.rsplit(at).collect(),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// datetime.now().strftime(format), which is the C library's.
fn strftime_now(format: &str) -> Result<String, Error> {
    let broken = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {what}"));
    // A mark before the result tells an empty result from one that did not fit.
    let format = std::ffi::CString::new(format!("x{format}")).map_err(|_| broken("the format holds a NUL"))?;
    let mut text = vec![0u8; 1024];
    let size = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut local: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut local).is_null() {
            return Err(broken("no local time"));
        }
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &local)
    };
    if size == 0 {
        return Err(broken("the result is too long"));
    }
    text.truncate(size);
    String::from_utf8(text.split_off(1)).map_err(|_| broken("the result is not UTF-8"))
}
