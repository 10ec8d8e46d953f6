//! Cache lines.

/// What one CPU writes often, on cache lines of its own; two lines, because processors fetch neighbours in pairs.
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

impl<T> core::ops::Deref for Line<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
