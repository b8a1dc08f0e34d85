//! Extracts files from a zip archive (APPNOTE.TXT 6.3.10): stored or deflated, without encryption, in one part. The
//! parser of inbound reports calls [`files`].

use std::io::Read as _;

use flate2::{Crc, read::DeflateDecoder};

/// Size of the end of central directory record in bytes, without its comment.
const END: usize = 22;
/// Size of a central directory header in bytes, without its variable fields.
const ENTRY: usize = 46;
/// Size of a local file header in bytes, without its variable fields.
const LOCAL: usize = 30;
/// Maximum length of an archive's comment in bytes.
const COMMENT: usize = 0xffff;

/// Why an archive is rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ZipError {
    /// The central directory is missing or invalid.
    #[error("the archive is damaged or cut off")]
    Damaged,
    /// The archive has more files than the bound.
    #[error("{0} further files are not read")]
    TooMany(usize),
    /// A file of the archive is encrypted.
    #[error("a file in it is encrypted")]
    Encrypted,
    /// The compression method is not supported.
    #[error("a file in it uses compression method {0}; supported are 0 and 8")]
    Method(u16),
    /// A file inflates beyond the bound.
    #[error("a file in it inflates beyond the size of any TLS report")]
    Bomb,
    /// The checksum does not match the content.
    #[error("the checksum of a file is wrong")]
    Checksum,
}

/// Whether the bytes begin with the signature of an archive.
pub(super) fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

/// The content of each file, or why it cannot be extracted. Reads at most `most` files; each may have at most `longest`
/// bytes.
pub(super) fn files(bytes: &[u8], most: usize, longest: usize) -> Result<Vec<Result<Vec<u8>, ZipError>>, ZipError> {
    let from = bytes.len().saturating_sub(END + COMMENT);
    let tail = bytes.get(from..).ok_or(ZipError::Damaged)?;
    let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06").ok_or(ZipError::Damaged)?;
    let end = tail.get(end..).filter(|end| end.len() >= END).ok_or(ZipError::Damaged)?;
    let (count, mut at) = (usize::from(short(end, 10)?), long(end, 16)?);
    let mut found = Vec::new();
    for place in 0..count {
        if place == most {
            found.push(Err(ZipError::TooMany(count - most)));
            break;
        }
        let entry = bytes.get(at..).filter(|entry| entry.starts_with(b"PK\x01\x02")).ok_or(ZipError::Damaged)?;
        let texts = usize::from(short(entry, 28)?) + usize::from(short(entry, 30)?) + usize::from(short(entry, 32)?);
        let name = entry.get(ENTRY..ENTRY + usize::from(short(entry, 28)?)).ok_or(ZipError::Damaged)?;
        if !name.ends_with(b"/") {
            found.push(file(bytes, entry, longest));
        }
        at += ENTRY + texts;
    }
    if found.is_empty() { Err(ZipError::Damaged) } else { Ok(found) }
}

fn file(bytes: &[u8], entry: &[u8], longest: usize) -> Result<Vec<u8>, ZipError> {
    let (flags, method, checksum) = (short(entry, 8)?, short(entry, 10)?, long(entry, 16)?);
    let (packed, at) = (long(entry, 20)?, long(entry, 42)?);
    if flags & 1 != 0 {
        return Err(ZipError::Encrypted);
    }
    let local = bytes.get(at..).filter(|local| local.starts_with(b"PK\x03\x04")).ok_or(ZipError::Damaged)?;
    let begin = LOCAL + usize::from(short(local, 26)?) + usize::from(short(local, 28)?);
    let packed = local.get(begin..).and_then(|rest| rest.get(..packed)).ok_or(ZipError::Damaged)?;
    let mut content = Vec::new();
    match method {
        0 => content.extend_from_slice(packed.get(..longest + 1).unwrap_or(packed)),
        8 => {
            let mut inflated = DeflateDecoder::new(packed).take(longest as u64 + 1);
            inflated.read_to_end(&mut content).map_err(|_| ZipError::Damaged)?;
        }
        other => return Err(ZipError::Method(other)),
    }
    if content.len() > longest {
        return Err(ZipError::Bomb);
    }
    let mut crc = Crc::new();
    crc.update(&content);
    if usize::try_from(crc.sum()) == Ok(checksum) { Ok(content) } else { Err(ZipError::Checksum) }
}

fn short(bytes: &[u8], at: usize) -> Result<u16, ZipError> {
    let pair = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(ZipError::Damaged)?;
    Ok(u16::from_le_bytes(*pair))
}

fn long(bytes: &[u8], at: usize) -> Result<usize, ZipError> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(ZipError::Damaged)?;
    usize::try_from(u32::from_le_bytes(*four)).map_err(|_| ZipError::Damaged)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::DeflateEncoder};
    use proptest::prelude::*;

    use super::*;

    /// An archive of these files with this compression method.
    fn archive(files: &[(&str, &[u8])], method: u16, flags: u16) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for (name, content) in files {
            let mut crc = Crc::new();
            crc.update(content);
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(content).expect("memory");
            let packed = if method == 8 { encoder.finish().expect("memory") } else { content.to_vec() };
            let length = |length: usize| u32::try_from(length).expect("short").to_le_bytes();
            let name_length = u16::try_from(name.len()).expect("short").to_le_bytes();
            let common = [
                &[20, 0][..],
                &flags.to_le_bytes(),
                &method.to_le_bytes(),
                &[0; 4],
                &crc.sum().to_le_bytes(),
                &length(packed.len()),
                &length(content.len()),
                &name_length,
                &[0, 0],
            ]
            .concat();
            let at = length(bytes.len());
            directory.extend([b"PK\x01\x02\x14\x00", &common[..], &[0; 10], &at, name.as_bytes()].concat());
            bytes.extend([b"PK\x03\x04", &common[..], name.as_bytes(), &packed].concat());
        }
        let (at, length) = (u32::try_from(bytes.len()), u32::try_from(directory.len()));
        let count = u16::try_from(files.len()).expect("few").to_le_bytes();
        bytes.extend(&directory);
        bytes.extend([b"PK\x05\x06", &[0; 4][..], &count, &count, &length.expect("short").to_le_bytes()].concat());
        bytes.extend([&at.expect("short").to_le_bytes()[..], &[0, 0]].concat());
        bytes
    }

    #[test]
    fn files_are_read_and_the_rest_is_reported() {
        for method in [0, 8] {
            let bytes = archive(&[("a/", b""), ("a/r.json", b"{}"), ("s.json", b"[]")], method, 0);
            assert_eq!(files(&bytes, 9, 9).expect("an archive"), [Ok(b"{}".to_vec()), Ok(b"[]".to_vec())]);
            assert_eq!(files(&bytes, 2, 9).expect("an archive"), [Ok(b"{}".to_vec()), Err(ZipError::TooMany(1))]);
            assert_eq!(files(&bytes, 9, 1).expect("an archive"), [Err(ZipError::Bomb), Err(ZipError::Bomb)]);
            for cut in 0..bytes.len() {
                assert!(files(&bytes[..cut], 9, 9).is_err(), "cut off at {cut}");
            }
        }
        assert_eq!(files(&archive(&[("r", b"x")], 8, 1), 9, 9), Ok(vec![Err(ZipError::Encrypted)]));
        assert_eq!(files(&archive(&[("r", b"x")], 14, 0), 9, 9), Ok(vec![Err(ZipError::Method(14))]));
        let mut wrong = archive(&[("r", b"x")], 0, 0);
        wrong[LOCAL + 1] = b'y';
        assert_eq!(files(&wrong, 9, 9), Ok(vec![Err(ZipError::Checksum)]));
        assert_eq!(files(&archive(&[], 0, 0), 9, 9), Err(ZipError::Damaged));
    }

    proptest! {
        #[test]
        fn any_change_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = archive(&[("a/r.json", b"{}"), ("s.json", b"[]")], 8, 0);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = files(&bytes, 9, 9);
        }
    }
}
