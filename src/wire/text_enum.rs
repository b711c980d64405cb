//! Enums of unit variants that are one word on the wire.

/// Defines such an enum. A variant is given with its word, which serde and `as_str` use.
macro_rules! text_enum {
    ($(#[$meta:meta])* pub enum $type:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

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
