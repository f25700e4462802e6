//! What the store reads back: records of segments, rows, owed uploads, names in the spool: no input may panic, hang, or take more room than its limit.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| larder::fuzzing::records(input));
