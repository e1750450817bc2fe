//! Sizes in the cluster file: `"1GiB"`, or a number of bytes. For `#[serde(with = "size")]`.

use blockdev::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// As text that reads back as the same number of bytes.
pub(super) fn serialize<S: Serializer>(size: &Option<ByteSize>, serializer: S) -> Result<S::Ok, S::Error> {
    let exact = |size: &ByteSize| {
        let text = size.to_string();
        if text.parse().is_ok_and(|parsed: ByteSize| parsed == *size) {
            text.replace(' ', "")
        } else {
            size.bytes().to_string()
        }
    };
    size.as_ref().map(exact).serialize(serializer)
}

/// From text or a number.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Bytes(u64),
        Text(String),
    }
    Ok(Some(match Written::deserialize(deserializer)? {
        Written::Bytes(bytes) => ByteSize::new(bytes),
        Written::Text(text) => text.parse().map_err(D::Error::custom)?,
    }))
}
