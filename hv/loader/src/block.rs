//! A structure for the guest, with tables and strings behind it that it points to.

use crate::multiboot::u32_at;
use alloc::{vec, vec::Vec};

/// The bytes of such a structure, before its address is known.
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    /// The fields that hold an offset in `bytes`, which has to become an address.
    pointers: Vec<usize>,
}

impl Block {
    /// A structure of `bytes` zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], pointers: Vec::new() }
    }

    /// Writes `value` to the field at offset `field`.
    pub(crate) fn set(&mut self, field: usize, value: u32) {
        self.write(field, &value.to_le_bytes());
    }

    /// The same, of 64 bits.
    pub(crate) fn set_u64(&mut self, field: usize, value: u64) {
        self.write(field, &value.to_le_bytes());
    }

    pub(crate) fn write(&mut self, field: usize, value: &[u8]) {
        self.bytes[field..][..value.len()].copy_from_slice(value);
    }

    /// Appends `bytes` zeros at a multiple of `align`, and gives their offset.
    pub(crate) fn append(&mut self, bytes: usize, align: usize) -> usize {
        let offset = self.bytes.len().next_multiple_of(align);
        self.bytes.resize(offset + bytes, 0);
        offset
    }

    /// Appends a table of `entries` entries of `entry_bytes` zeros at a multiple of `align`, and has the field point to it. Gives
    /// the entries' offsets.
    pub(crate) fn table(
        &mut self,
        field: usize,
        entries: usize,
        entry_bytes: usize,
        align: usize,
    ) -> impl Iterator<Item = usize> + use<> {
        let table = self.append(entries * entry_bytes, align);
        self.point(field, table);
        (0..entries).map(move |index| table + index * entry_bytes)
    }

    /// Has the 32-bit field at `field` point to `offset`. The upper half of a 64-bit field stays zero, as a guest's boot
    /// information is below 4 GiB.
    pub(crate) fn point(&mut self, field: usize, offset: usize) {
        self.set(field, offset as u32);
        self.pointers.push(field);
    }

    /// Appends `string` with a NUL, and has the field point to it.
    pub(crate) fn string(&mut self, field: usize, string: &[u8]) {
        self.point(field, self.bytes.len());
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
    }

    pub(crate) fn get(&self, field: usize) -> u32 {
        u32_at(&self.bytes, field).unwrap_or_default()
    }

    /// The bytes for address `at`.
    pub(crate) fn finish(mut self, at: u32) -> Vec<u8> {
        for field in core::mem::take(&mut self.pointers) {
            self.set(field, at + self.get(field));
        }
        self.bytes
    }
}
