//! What go writes to its helper: no input may panic, hang, or take more room than its limit.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| larder::fuzzing::helper(input));
