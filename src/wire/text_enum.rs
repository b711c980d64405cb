//! Enums of unit variants that are one word on the wire.

/// Adds `as_str` to such an enum. The words are the serde names of the variants.
macro_rules! text_enum {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($type::$variant => $word),+
                }
            }
        }
    };
}
pub(super) use text_enum;
