//! Enums whose values have a number, for registers and ports, and a name, for people and command lines.

use core::fmt;

/// A number or name to which the interface gives no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the interface gives it no meaning")
    }
}

impl core::error::Error for Unknown {}

/// Defines an enum from rows of `Variant = number, "name";`. `From` gives the number and `TryFrom` reads it; `Display` gives the
/// name and `FromStr` reads it; `ALL` has all values in the order of the rows.
macro_rules! numbered {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $number:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $value:expr, $text:literal;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($number)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $value,)*
        }

        impl $name {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl From<$name> for $number {
            fn from(value: $name) -> Self {
                value as Self
            }
        }

        impl TryFrom<$number> for $name {
            type Error = $crate::Unknown;

            fn try_from(number: $number) -> Result<Self, Self::Error> {
                Self::ALL.iter().copied().find(|value| $number::from(*value) == number).ok_or($crate::Unknown)
            }
        }

        impl core::str::FromStr for $name {
            type Err = $crate::Unknown;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|value| value.name() == name).ok_or($crate::Unknown)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(crate) use numbered;
