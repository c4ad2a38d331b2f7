//! Columns of numbers in JSON: base64 of little-endian arrays.

#![forbid(unsafe_code)]

use serde::{Serialize, Serializer};

/// A column.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "named by the width of a number")]
pub enum Column {
    U8(#[serde(serialize_with = "u8s")] Vec<u8>),
    U16(#[serde(serialize_with = "u16s")] Vec<u16>),
    U32(#[serde(serialize_with = "u32s")] Vec<u32>),
    F64(#[serde(serialize_with = "f64s")] Vec<f64>),
}

impl Column {
    /// A column of wide numbers, exact up to 2^53.
    pub fn wide(numbers: impl Iterator<Item = u64>) -> Self {
        Self::F64(numbers.map(|number| number as f64).collect())
    }
}

fn u8s<S: Serializer>(numbers: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&base64(numbers))
}

fn u16s<S: Serializer>(numbers: &[u16], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&base64(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()))
}

fn u32s<S: Serializer>(numbers: &[u32], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&base64(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()))
}

fn f64s<S: Serializer>(numbers: &[f64], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&base64(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let three = [chunk[0], chunk.get(1).copied().unwrap_or(0), chunk.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let is_there = digit <= chunk.len();
            text.push(if is_there { DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_base64_with_padding() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        let column = serde_json::to_string(&Column::U16(vec![1, 0x203])).expect("JSON");
        assert_eq!(column, r#"{"u16":"AQADAg=="}"#);
    }
}
