//! `Record::decode` on arbitrary bytes: an error, or a record that is equal after it is encoded again; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtpwatch_common::{CHUNK, Record};
use smtpwatch_fuzz::wire;

fuzz_target!(|bytes: &[u8]| match Record::decode(bytes) {
    Ok(record) => {
        let header = &record.header;
        assert!(record.payload.len() <= CHUNK);
        assert_eq!(record.payload.len(), usize::from(header.captured));
        assert!(header.options().len() == usize::from(header.options_len));
        assert_eq!(wire::encode(header, record.payload), bytes, "what was read is what was written");
        // End points can be read from any bytes.
        assert_eq!(header.key.client().port(), header.key.client_port);
        assert_eq!(header.key.server().port(), header.key.server_port);
    }
    Err(error) => assert!(!error.to_string().is_empty()),
});
