//! Recognition of a guest's boot protocol by the content of its image.

use crate::image::{Image, ImageError};
use crate::{linux, multiboot1, multiboot2, pvh};

/// An image, by the protocol that loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kernel<'a> {
    Linux(linux::Kernel<'a>),
    Multiboot2(multiboot2::Kernel<'a>),
    Multiboot(Image<'a>),
    Pvh(Image<'a>),
}

impl<'a> Kernel<'a> {
    /// Looks for the protocols' marks in the order of the variants: an image that several protocols can load is loaded by the
    /// first. A header with a wrong checksum is none, and is named if there is no other.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        if let Some(kernel) = linux::Kernel::parse(file).map_err(ImageError::Linux)? {
            return Ok(Self::Linux(kernel));
        }
        let mut bad_checksum = None;
        match multiboot2::find(file) {
            Ok(Some(offset)) => return multiboot2::Kernel::parse(file, offset).map(Self::Multiboot2),
            Ok(None) => {}
            Err(offset) => bad_checksum = Some(("multiboot2", offset)),
        }
        match multiboot1::find(file) {
            Ok(Some(offset)) => return multiboot1::parse(file, offset).map(Self::Multiboot),
            Ok(None) => {}
            Err(offset) => bad_checksum = bad_checksum.or(Some(("multiboot", offset))),
        }
        pvh::parse(file)?.map(Self::Pvh).ok_or(ImageError::Unknown { bad_checksum })
    }
}
