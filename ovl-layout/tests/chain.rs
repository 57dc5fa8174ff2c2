use std::cell::Cell;
use std::collections::HashSet;

use ovl_layout::{DOCKER_MAX_DEPTH, LinkId, LowerChain, LowerFileError};
use proptest::collection::{hash_set, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

fn link(byte: u8) -> LinkId {
    LinkId::from_entropy([byte; 17])
}

#[test]
fn a_childs_chain_is_its_parent_and_the_parents_chain() {
    let mut chain = LowerChain::default();
    for byte in 0..DOCKER_MAX_DEPTH {
        chain = LowerChain::for_child(link(byte as u8), &chain, DOCKER_MAX_DEPTH).unwrap();
    }
    assert_eq!(chain.depth(), 128);
    assert_eq!(chain.parent(), Some(link(127)));
    assert_eq!(chain.links()[127], link(0));
    let error = LowerChain::for_child(link(200), &chain, DOCKER_MAX_DEPTH).unwrap_err();
    assert_eq!((error.depth, error.max_depth), (129, 128));
    assert!(error.to_string().starts_with("max depth exceeded"));
}

#[test]
fn the_file_of_128_layers_has_3711_bytes() {
    let chain: LowerChain = (0..128).map(link).collect();
    assert_eq!(chain.to_string().len(), 3711);
    assert_eq!(LowerChain::encoded_len(128), 3711);
    assert_eq!(LowerChain::encoded_len(0), 0);
}

#[test]
fn rows_126_to_129_damaged_lower_files_are_refused() {
    let good = format!("l/{}", link(1));
    let parse = |text: &str| LowerChain::parse_file(text.as_bytes());
    assert_eq!(parse(""), Err(LowerFileError::Empty));
    assert_eq!(parse("\n"), Err(LowerFileError::Empty));
    for wrong in [
        format!("{good}:"),
        format!(":{good}"),
        format!("{good}::l/{}", link(2)),
        format!("{good}\n\n"),
        format!("{good}\r\n"),
        format!("{good} "),
        format!("{good}:l/../../../../etc"),
        format!("{good}:l/"),
        format!("{good}:/{}", link(2)),
        format!("L/{}", link(2)),
    ] {
        assert!(parse(&wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(parse(&format!("{good}\n")).unwrap().depth(), 1);
}

#[test]
fn row_125_a_link_that_stands_in_a_chain_twice_is_refused() {
    let text = format!("l/{0}:l/{1}:l/{0}", link(1), link(2));
    let error = LowerChain::parse_file(text.as_bytes()).unwrap_err();
    assert!(matches!(error, LowerFileError::Duplicate { link: twice, .. } if twice == link(1)));
}

proptest! {
    #[test]
    fn a_chain_reads_back_and_its_length_is_known(links in hash_set(any::<[u8; 17]>(), 1..140)) {
        let chain: LowerChain = links.into_iter().map(|bytes| {
            let mut bytes = bytes;
            bytes[16] &= 0xc0;
            LinkId::from_entropy(bytes)
        }).collect();
        let text = chain.to_string();
        prop_assert_eq!(text.len(), LowerChain::encoded_len(chain.depth()));
        match LowerChain::parse_file(text.as_bytes()) {
            Ok(read) => prop_assert_eq!(read, chain),
            // Two of the random ids may agree in the bits that count.
            Err(error) => {
                let duplicate = matches!(error, LowerFileError::Duplicate { .. });
                prop_assert!(duplicate);
            }
        }
    }
}

/// A change of one byte of a chain's text.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    /// Writes a whole entry again, somewhere.
    Repeat(Index, Index),
}

/// The text of a chain, with up to two changes, and whether there is one.
fn changed_text() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let links = hash_set(0..100_u8, 1..8);
    let byte = prop_oneof![
        2 => select(b"ABYZ27".to_vec()),
        1 => select(b"l:/.a1\n\r\0".to_vec()),
        1 => any::<u8>(),
    ];
    let at = any::<Index>;
    let change = prop_oneof![
        5 => (at(), byte.clone()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => (at(), byte).prop_map(|(at, byte)| Change::Insert(at, byte)),
        1 => at().prop_map(Change::Remove),
        1 => (at(), at()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ];
    (links, vec(change, 0..3), any::<bool>()).prop_map(|(links, changes, newline)| {
        let chain: LowerChain = links.into_iter().map(link).collect();
        let mut text = chain.to_string().into_bytes();
        text.extend(newline.then_some(b'\n'));
        let before = text.clone();
        for change in changes {
            let len = text.len();
            match change {
                Change::Set(at, byte) => text[at.index(len)] = byte,
                Change::Insert(at, byte) => text.insert(at.index(len + 1), byte),
                Change::Remove(at) => {
                    text.remove(at.index(len));
                }
                Change::Repeat(from, to) => {
                    let mut entries: Vec<&[u8]> = text.split(|&byte| byte == b':').collect();
                    entries.insert(
                        to.index(entries.len() + 1),
                        entries[from.index(entries.len())],
                    );
                    text = entries.join(&b':');
                }
            }
        }
        let is_changed = text != before;
        (text, is_changed)
    })
}

#[test]
fn whatever_is_accepted_names_links_only() {
    // Of what is no longer as it was written.
    let (accepted, refused) = (Cell::new(0), Cell::new(0));
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let read = |(bytes, is_changed): (Vec<u8>, bool)| {
        let Ok(chain) = LowerChain::parse_file(&bytes) else {
            refused.set(refused.get() + 1);
            return Ok(());
        };
        accepted.set(accepted.get() + u32::from(is_changed));
        prop_assert!(!chain.is_empty());
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let written = chain.to_string();
        prop_assert_eq!(written.as_bytes(), text);
        let links: HashSet<_> = chain.links().iter().collect();
        prop_assert_eq!(links.len(), chain.depth(), "a link twice");
        Ok(())
    };
    let any_bytes = vec(any::<u8>(), 0..200).prop_map(|bytes| (bytes, true));
    let input = prop_oneof![9 => changed_text(), 1 => any_bytes];
    TestRunner::new(config).run(&input, read).unwrap();
    let (accepted, refused) = (accepted.get(), refused.get());

    // Several times as many come by chance.
    assert!(
        accepted >= 5 && refused >= 20,
        "{accepted} accepted, {refused} refused"
    );
}
