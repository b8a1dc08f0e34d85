//! SMTP as an alphabet: one byte of input is one word of a dialogue, so that a fuzzer generates whole sentences.

/// Password of the planted credentials, in cleartext.
pub const PASSWORD: &str = "Tr0ub4dor-planted-and-3";
/// `\0user\0` and the password in base64.
pub const SECRET: &str = "AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=";
/// The part of [`SECRET`] that encodes the password alone.
pub const SECRET_CORE: &str = "VHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM";

/// One word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// These bytes.
    Text(&'static [u8]),
    /// A line that is or contains the planted secret. Only the client sends it, at the start of a line.
    Secret(&'static [u8]),
    /// The client sends the following bytes.
    Client,
    /// The server sends the following bytes.
    Server,
    /// The bytes so far are delivered: the next word begins a new segment.
    Cut,
    /// As [`Word::Cut`], and toggles drip mode: following bytes are split into many segments, a short line byte by
    /// byte.
    Drip,
    /// The next byte of the input is sent unchanged.
    Literal,
    /// The next byte of the input is the number of bytes missing here.
    Gap,
    /// Starts a line of 600 bytes.
    Long,
    /// Starts a line of 13,000 bytes.
    Huge,
    /// This host is the client, and the server's bytes from here on are not trusted: see
    /// [`smtpwatch_core::smtp::Session::distrust`].
    Distrust,
}

/// The word that a byte encodes.
#[must_use]
pub fn word(octet: u8) -> Word {
    WORDS[usize::from(octet) % WORDS.len()]
}

/// The byte that encodes a word.
#[must_use]
pub fn octet(word: Word) -> Option<u8> {
    WORDS.iter().position(|known| *known == word).and_then(|index| u8::try_from(index).ok())
}

const WORDS: [Word; 123] = [
    Word::Client,
    Word::Server,
    Word::Cut,
    Word::Drip,
    Word::Literal,
    Word::Gap,
    Word::Long,
    Word::Huge,
    Word::Text(b"\r\n"),
    Word::Text(b"\n"),
    Word::Text(b"\r"),
    Word::Text(b" "),
    Word::Text(b"\t"),
    Word::Text(b"-"),
    Word::Text(b"="),
    Word::Text(b"."),
    Word::Text(b"\0"),
    Word::Text(b"\xff\xf4"),
    Word::Text(b"\xe2\x80\xae"),
    Word::Text(b"X"),
    Word::Text(b"\r\n.\r\n"),
    Word::Text(b".\r\n"),
    Word::Text(b"EHLO mail.example.org\r\n"),
    Word::Text(b"EHLO "),
    Word::Text(b"eHlO x\r\n"),
    Word::Text(b"HELO x\r\n"),
    Word::Text(b"LHLO x\r\n"),
    Word::Text(b"STARTTLS\r\n"),
    Word::Text(b" sTaRtTlS \n"),
    Word::Text(b"STARTTLS"),
    Word::Text(b"X-ANONYMOUSTLS\r\n"),
    Word::Text(b"MAIL FROM:<a@example.org>\r\n"),
    Word::Text(b"MAIL FROM:<> SIZE=9 BODY=8BITMIME REQUIRETLS\r\n"),
    Word::Text(b"MAIL FROM:"),
    Word::Text(b"RCPT TO:<b@example.net>\r\n"),
    Word::Text(b"RCPT TO:"),
    Word::Text(b"DATA\r\n"),
    Word::Text(b"BDAT 5\r\n"),
    Word::Text(b"BDAT 0 LAST\r\n"),
    Word::Text(b"BDAT 9 LAST\r\n"),
    Word::Text(b"BDAT 99999999999999999999\r\n"),
    Word::Text(b"BDAT 18446744073709551615\r\n"),
    Word::Text(b"RSET\r\n"),
    Word::Text(b"NOOP\r\n"),
    Word::Text(b"VRFY x\r\n"),
    Word::Text(b"QUIT\r\n"),
    Word::Text(b"XXXX\r\n"),
    Word::Text(b"XXXXXXXX\r\n"),
    Word::Text(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n"),
    Word::Text(b"AUTH LOGIN\r\n"),
    Word::Text(b"AUTH PLAIN\r\n"),
    Word::Text(b"AUTH PLAIN =\r\n"),
    Word::Text(b"AUTH CRAM-MD5\r\n"),
    Word::Text(b"AUTH DIGEST-MD5\r\n"),
    Word::Text(b"AUTH GSSAPI\r\n"),
    Word::Text(b"AUTH "),
    Word::Text(b"X-EXPS LOGIN\r\n"),
    Word::Text(b"dXNlcg==\r\n"),
    Word::Text(b"*\r\n"),
    Word::Text(b"user"),
    Word::Secret(b"AUTH PLAIN AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
    Word::Secret(b"auth xoauth2 AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
    Word::Secret(b"AUTH LOGIN AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
    Word::Secret(b"X-EXPS AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
    Word::Secret(b"AUTH AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
    Word::Secret(b"AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
    Word::Secret(b"XXXX PLAIN AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
    Word::Secret(b"LOGIN user Tr0ub4dor-planted-and-3\r\n"),
    Word::Text(b"220 mx.example.net ESMTP\r\n"),
    Word::Text(b"220-mx.example.net\r\n"),
    Word::Text(b"220 go ahead\r\n"),
    Word::Text(b"220 ****************2**\r\n"),
    Word::Text(b"220 "),
    Word::Text(b"250-mx.example.net Hello\r\n"),
    Word::Text(b"250-STARTTLS\r\n"),
    Word::Text(b"250 STARTTLS\r\n"),
    Word::Text(b"250-starttls x\r\n"),
    Word::Text(b"250-XXXXXXXA\r\n"),
    Word::Text(b"250-STARTTLX\r\n"),
    Word::Text(b"250-AUTH PLAIN LOGIN CRAM-MD5\r\n"),
    Word::Text(b"250 AUTH=LOGIN\r\n"),
    Word::Text(b"250-SIZE 35882577\r\n"),
    Word::Text(b"250-PIPELINING\r\n"),
    Word::Text(b"250-CHUNKING\r\n"),
    Word::Text(b"250-ETRN\r\n"),
    Word::Text(b"250-8BITMIME\r\n"),
    Word::Text(b"250-ENHANCEDSTATUSCODES\r\n"),
    Word::Text(b"250 DSN\r\n"),
    Word::Text(b"250 ok\r\n"),
    Word::Text(b"250-"),
    Word::Text(b"250\r\n"),
    Word::Text(b"235 2.7.0 ok\r\n"),
    Word::Text(b"334 \r\n"),
    Word::Text(b"334 VXNlcm5hbWU6\r\n"),
    Word::Text(b"334 "),
    Word::Text(b"354 go on\r\n"),
    Word::Text(b"354-go\r\n"),
    Word::Text(b"421 bye\r\n"),
    Word::Text(b"421-4.3.0\r\n"),
    Word::Text(b"454 4.7.0 TLS not available\r\n"),
    Word::Text(b"500 5.5.1 unrecognized: XXXXXXXX\r\n"),
    Word::Text(b"502 5.5.2 not implemented\r\n"),
    Word::Text(b"503 5.5.1 not now\r\n"),
    Word::Text(b"530 5.7.0 STARTTLS first\r\n"),
    Word::Text(b"535 5.7.8 no\r\n"),
    Word::Text(b"554 5.7.1 refused\r\n"),
    Word::Text(b"221 2.0.0 bye\r\n"),
    Word::Text(b"25\r\n"),
    Word::Text(b"2500 x\r\n"),
    Word::Text(b"hello\r\n"),
    Word::Text(b"\x16\x03\x01"),
    // A ClientHello of TLS 1.2 with one suite and SNI `mx.example.net`.
    Word::Text(
        b"\x16\x03\x01\x00\x46\x01\x00\x00\x42\x03\x03AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\x00\x00\x02\xc0\x2f\x01\x00\
          \x00\x17\x00\x00\x00\x13\x00\x11\x00\x00\x0emx.example.net",
    ),
    // A ServerHello of TLS 1.2.
    Word::Text(b"\x16\x03\x03\x00\x2a\x02\x00\x00\x26\x03\x03BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB\x00\xc0\x2f\x00"),
    Word::Text(b"\x14\x03\x03\x00\x01\x01"),
    Word::Text(b"\x15\x03\x01\x00\x02\x02\x28"),
    Word::Text(b"\x17\x03\x03\x00\x05abcde"),
    Word::Text(b"\x17\x03\x03"),
    Word::Text(b"\x80\x2e\x01\x03\x01"),
    Word::Text(b"\xff\xff"),
    Word::Text(b"\x00\x05"),
    Word::Text(b"HTTP/1.1 101 Switching\r\n\r\n"),
    Word::Text(b"GET / HTTP/1.1\r\n"),
    Word::Distrust,
];
