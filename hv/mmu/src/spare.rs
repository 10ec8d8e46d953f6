//! Frames for tables, allocated before an operation begins so that it can't fail halfway.

use crate::env::Env;
use crate::tree::{NoMemory, Tree};
use addr::Pfn;

/// The most frames that an operation needs: for two edges of a range, each split at two levels, or for one path.
const MAX_SPARE: usize = 4;

/// Frames for tables. Unused frames are freed when it is dropped.
pub(crate) struct Spare<'t, E: Env> {
    env: &'t E,
    frames: [Pfn; MAX_SPARE],
    len: usize,
    used: usize,
}

impl<E: Env> Tree<E> {
    /// Allocates `wanted` frames, all or none.
    pub(crate) fn top_up(&self, wanted: usize) -> Result<Spare<'_, E>, NoMemory> {
        let mut spare = Spare { env: &self.env, frames: [Pfn::new(0); MAX_SPARE], len: 0, used: 0 };
        while spare.len < wanted {
            *spare.frames.get_mut(spare.len).ok_or(NoMemory)? = self.env.alloc_table().ok_or(NoMemory)?;
            spare.len += 1;
        }
        Ok(spare)
    }
}

impl<E: Env> Spare<'_, E> {
    /// The `n`-th unused frame.
    pub(crate) fn frame(&self, n: usize) -> Option<Pfn> {
        self.frames[self.used..self.len].get(n).copied()
    }

    /// Marks the next `n` frames as used: they are tables of the tree now.
    pub(crate) fn used(&mut self, n: usize) {
        self.used += n;
    }
}

impl<E: Env> Drop for Spare<'_, E> {
    fn drop(&mut self) {
        for &frame in &self.frames[self.used..self.len] {
            if let Some(desc) = self.env.desc(frame) {
                desc.set_dead();
            }
            self.env.free_table(frame);
        }
    }
}
