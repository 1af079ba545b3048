//! What crosses the C border: buffers, statuses, and the net under panics.
use std::panic::{catch_unwind, AssertUnwindSafe};

pub const OK: i32 = 0;
const INVALID: i32 = 1;
const BROKEN: i32 = 2;

/// A Vec taken apart; `capacity` is what free needs to put it together again.
#[repr(C)]
pub struct Buffer<T> {
    data: *mut T,
    size: usize,
    capacity: usize,
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(vec: Vec<T>) -> Self {
        let mut vec = std::mem::ManuallyDrop::new(vec);
        Buffer { data: vec.as_mut_ptr(), size: vec.len(), capacity: vec.capacity() }
    }
}

impl<T> Buffer<T> {
    /// # Safety
    /// `self` was made by `from` and is used no more.
    pub unsafe fn free(self) {
        if !self.data.is_null() {
            drop(Vec::from_raw_parts(self.data, self.size, self.capacity));
        }
    }
}

pub type Bytes = Buffer<u8>;
pub type Ids = Buffer<u32>;

/// # Safety
/// `data` holds `size` values, or `size` is 0.
pub unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

/// # Safety
/// As `slice`.
pub unsafe fn text<'a>(data: *const u8, size: usize) -> anyhow::Result<&'a str> {
    std::str::from_utf8(slice(data, size)).map_err(|e| anyhow::anyhow!("not valid UTF-8: {e}"))
}

/// Runs an entry's body: a wrong input is INVALID, a panic BROKEN, each with its text.
///
/// # Safety
/// `error` may be written.
pub unsafe fn guard(error: *mut Bytes, body: impl FnOnce() -> anyhow::Result<()>) -> i32 {
    let (status, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(e)) => (INVALID, format!("{e:#}")),
        Err(panic) => (BROKEN, panic_text(panic.as_ref())),
    };
    error.write(message.into_bytes().into());
    status
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return (*text).to_string();
    }
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".to_string())
}

/// Drops what an open call gave; a panic in a destructor must not cross the border either.
///
/// # Safety
/// `handle` came from Box::into_raw, or is null.
pub unsafe fn close<T>(handle: *mut T) {
    if !handle.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(handle))));
    }
}
