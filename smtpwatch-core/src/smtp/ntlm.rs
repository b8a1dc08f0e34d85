//! Extracts the names and responses that an NTLM message holds in cleartext ([MS-NLMP] §2.2.1), so that a server's
//! quotation of them can be redacted.

use crate::secret_buffer::SecretBuffer;

/// First bytes of each message, also within SPNEGO.
const SIGNATURE: &[u8] = b"NTLMSSP\0";
const HEX: &[u8; 16] = b"0123456789abcdef";
const MESSAGE_TYPE: usize = 8;
const NEGOTIATE: u32 = 1;
const AUTHENTICATE: u32 = 3;
/// Offsets of domain and workstation in a NEGOTIATE message.
const NEGOTIATE_NAMES: [usize; 2] = [16, 24];
/// Offsets of domain, user and workstation in an AUTHENTICATE message.
const AUTHENTICATE_NAMES: [usize; 3] = [28, 36, 44];
/// Offsets of the LM and NT responses in an AUTHENTICATE message.
const RESPONSES: [usize; 2] = [12, 20];

/// Appends each name and each response of a client's message to `words`, separated by blanks: names both as encoded
/// and as UTF-8, responses in hexadecimal. Appends nothing if `decoded` holds no message.
pub(super) fn words(decoded: &[u8], words: &mut SecretBuffer) {
    let Some(start) = decoded.windows(SIGNATURE.len()).position(|window| window == SIGNATURE) else { return };
    let message = &decoded[start..];
    let (names, responses) = match number(message, MESSAGE_TYPE) {
        Some(NEGOTIATE) => (&NEGOTIATE_NAMES[..], &[][..]),
        Some(AUTHENTICATE) => (&AUTHENTICATE_NAMES[..], &RESPONSES[..]),
        _ => return,
    };
    for name in names.iter().filter_map(|&at| field(message, at)) {
        // The flags name the encoding, but old clients leave them out.
        words.push(b' ');
        words.extend_from_slice(name);
        words.push(b' ');
        let units = name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        for c in char::decode_utf16(units).flatten() {
            words.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    for response in responses.iter().filter_map(|&at| field(message, at)) {
        words.push(b' ');
        for byte in response {
            let digit = |value: u8| HEX[usize::from(value)];
            words.extend_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
}

/// The bytes that a field describes: length in bytes, allocated length, and offset from the start of the message.
fn field(message: &[u8], at: usize) -> Option<&[u8]> {
    let length = u16::from_le_bytes(message.get(at..)?.first_chunk().copied()?);
    let offset = usize::try_from(number(message, at + 4)?).ok()?;
    message.get(offset..)?.get(..length.into())
}

fn number(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(message.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(names: [&[u8]; 3]) -> Vec<u8> {
        let response = [0xd0, 0x0d, 0xbe, 0xef];
        let (mut head, mut payload) = ([SIGNATURE, &[3, 0, 0, 0]].concat(), Vec::new());
        for part in [&response[..], &response, names[0], names[1], names[2], b""] {
            let (length, offset) = (u16::try_from(part.len()).expect("short"), u32::try_from(64 + payload.len()));
            head.extend([length.to_le_bytes(), length.to_le_bytes()].concat());
            head.extend(offset.expect("short").to_le_bytes());
            payload.extend_from_slice(part);
        }
        [head, vec![1, 2, 3, 4], payload].concat()
    }

    fn read(decoded: &[u8]) -> String {
        let mut found = SecretBuffer::default();
        words(decoded, &mut found);
        String::from_utf8_lossy(&found).into_owned()
    }

    #[test]
    fn names_and_responses_are_found_in_either_encoding() {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let unicode = message([&wide("CORP"), &wide("jörg"), &wide("ПК7")]);
        let oem = message([b"CORP", b"anna", b"WS1"]);
        for (decoded, expected) in [
            (unicode.clone(), ["CORP", "jörg", "ПК7"]),
            ([b"\x60\x48\x06".as_slice(), &unicode].concat(), ["CORP", "jörg", "ПК7"]),
            (oem, ["CORP", "anna", "WS1"]),
        ] {
            let found = read(&decoded);
            let words: Vec<&str> = found.split(' ').collect();
            assert!(expected.iter().all(|name| words.contains(name)), "{found:?}");
            assert_eq!(words.iter().filter(|word| **word == "d00dbeef").count(), 2, "{found:?}");
        }
    }

    #[test]
    fn a_message_that_is_cut_or_lies_gives_what_there_is() {
        let whole = message([b"CORP", b"anna", b"WS1"]);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).len() <= read(&whole).len());
        }
        let mut lies = whole.clone();
        lies[40..44].fill(0xff);
        assert!(!read(&lies).contains("anna") && read(&lies).contains("CORP"));
        assert_eq!(read(b"NTLMSSP\0\x02\0\0\0 challenge"), "");
        assert_eq!(read(b"plain text"), "");
    }
}
