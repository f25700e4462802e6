//! Decisions, as pure functions: what is taken in, what goes upstream, what may be asked for there.
//!
//! Whether a build waits for the network is decided in `ask`, by what `statistics` has learnt of the
//! upstream and what `group` knows of keys that belong together; how long, by what `waiting` counts.

use crate::cache::{ClassRule, Share};
use crate::entry::action::GoEntry;
use crate::entry::{Class, Kind};
use crate::manifest;

pub mod ask;
pub mod group;
pub mod statistics;
pub mod waiting;

#[cfg(test)]
mod simulator;

/// The largest body that is taken in.
pub const BODY_MAX: u64 = 64 << 30;
/// Actions are small; a larger one is somebody's mistake or attack.
pub const ACTION_MAX: u64 = 32 << 20;

/// Outputs from this size on are weighed against what they cost.
const WEIGHED_FROM: u64 = 1 << 20;
/// 1 Gbit/s.
const LINK_BYTES_PER_MS: u64 = 125_000;

/// The limit of a body of this kind.
pub const fn body_limit(kind: Kind) -> u64 {
    match kind {
        Kind::Action => ACTION_MAX,
        Kind::Content | Kind::Opaque | Kind::Go => BODY_MAX,
    }
}

/// What may be done with an entry of this class: the configured rule, else what its nature says.
pub fn share(class: Class, rules: &[ClassRule]) -> Share {
    match rule(class, rules) {
        Some(rule) => rule.share,
        None if class.is_machine_bound() => Share::Local,
        None => Share::Upstream,
    }
}

/// Whether an entry deserves a place upstream: not if it is made faster than a fast link would bring it.
pub const fn is_worth_a_place(size: u64, cost_ms: u32) -> bool {
    // Below, or where nobody measured, what it took says little.
    cost_ms == 0 || size < WEIGHED_FROM || size / (cost_ms as u64) <= LINK_BYTES_PER_MS
}

/// The upstream that entries of this class have of their own, by its name.
pub fn upstream_of(class: Class, rules: &[ClassRule]) -> Option<&str> {
    rule(class, rules)?.upstream.as_deref()
}

fn rule(class: Class, rules: &[ClassRule]) -> Option<&ClassRule> {
    let of = |name: &str| rules.iter().find(|rule| rule.class == name);
    of(class.name()).or_else(|| match class {
        Class::TestLog => of(Class::TestResult.name()),
        Class::ToolchainIndex => of(Class::PackageIndex.name()),
        _ => None,
    })
}

/// Whether Go's helpers would believe this value of an action: what it names, or what it foretells.
pub fn is_believed_by_go(value: &[u8]) -> bool {
    GoEntry::decode(value).is_ok() || manifest::is_one(value)
}

/// Whether an entry that was built with one C toolchain may be used with another.
pub const fn c_env_fits(entry: u64, machine: u64) -> bool {
    entry == 0 || machine == 0 || entry == machine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bound_to_a_machine_stays_on_it_unless_told_otherwise() {
        let rule = |class: &str, share| ClassRule { class: class.into(), share, upstream: None };
        let rules = [rule("test", Share::Off), rule("probe", Share::Upstream)];
        let of_indexes = [rule("package_index", Share::Off)];
        assert_eq!(share(Class::ToolchainIndex, &of_indexes), Share::Off, "one for all indexes");
        let cases = [
            (Class::Archive, Share::Upstream),
            (Class::PackageIndex, Share::Local),
            (Class::CompilerId, Share::Local),
            (Class::ModuleIndex, Share::Upstream),
            (Class::ToolchainIndex, Share::Upstream),
            (Class::Probe, Share::Upstream),
            (Class::TestLog, Share::Off),
            (Class::TestResult, Share::Off),
        ];
        for (class, expected) in cases {
            assert_eq!(share(class, &rules), expected, "{}", class.name());
        }
    }

    #[test]
    fn what_is_made_faster_than_a_link_brings_it_gets_no_place_upstream() {
        const MIB: u64 = 1 << 20;
        let cases = [
            (0, 1, true),
            (MIB - 1, 1, true),
            (MIB, 1, false),
            (MIB, 8, false),
            (MIB, 9, true),
            (100 * MIB, 300, false),
            (100 * MIB, 3_000, true),
            (100 * MIB, 0, true),
            (u64::MAX, u32::MAX, false),
        ];
        for (size, cost_ms, is_worth) in cases {
            assert_eq!(is_worth_a_place(size, cost_ms), is_worth, "{size} bytes in {cost_ms} ms");
        }
    }

    #[test]
    fn c_bound_entries_stay_with_their_toolchain() {
        assert!(c_env_fits(0, 5));
        assert!(c_env_fits(5, 5));
        assert!(!c_env_fits(5, 6));
    }
}
