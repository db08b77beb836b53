//! A configuration file: it is understood or refused with a text, and what is understood can be asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpr_node::config::Config;

fuzz_target!(|text: &str| {
    for member in [None, Some("b")] {
        match Config::parse(text, member) {
            Ok(config) => {
                let _ = (config.me(), config.partner(), config.is_preferred(), config.warnings());
                let _ = (config.unsupported(), config.unsupported_unhooked());
            }
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    }
});
