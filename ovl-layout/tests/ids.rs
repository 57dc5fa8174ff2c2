use std::cell::Cell;

use ovl_layout::{LINK_ID_LEN, LayerId, LayerIdError, LinkId, LinkIdError, parse_link_target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn row_156_an_empty_id_is_refused() {
    assert_eq!("".parse::<LayerId>(), Err(LayerIdError::Empty));
}

#[test]
fn row_157_ids_that_are_paths_or_reserved_are_refused() {
    for text in [
        ".", "..", "a/b", "/abs", "../x", ".hidden", "-rf", "a\0b", "a\nb", "a b", "a%b", "é",
    ] {
        let error = text.parse::<LayerId>().unwrap_err();
        assert!(
            matches!(error, LayerIdError::ForbiddenByte { .. }),
            "{text:?}: {error}"
        );
    }
    for text in [
        "l",
        "backingFsBlockDev",
        "check-overlayfs-support1",
        "opaque-bug-check9",
    ] {
        let error = text.parse::<LayerId>().unwrap_err();
        assert!(
            matches!(error, LayerIdError::Reserved { .. }),
            "{text:?}: {error}"
        );
    }
    let long = "a".repeat(129);
    assert!(matches!(
        long.parse::<LayerId>(),
        Err(LayerIdError::TooLong {
            len: 129,
            max: 128,
            ..
        })
    ));
    assert!("a".repeat(128).parse::<LayerId>().is_ok());
}

#[test]
fn ids_that_docker_makes_are_accepted() {
    let image = "3b2a".repeat(16);
    for text in [
        &*image,
        &format!("{image}-init"),
        "rkh8z0hv8p6v2m4y1q5n7x3ab",
        "Base",
        "Snap",
    ] {
        assert_eq!(text.parse::<LayerId>().unwrap().as_str(), text);
    }
}

#[test]
fn link_ids_are_the_first_26_symbols_of_base_32() {
    // RFC 4648: "foobar" is MZXW6YTBOI.
    let mut entropy = [0; 17];
    entropy[..6].copy_from_slice(b"foobar");
    assert_eq!(
        LinkId::from_entropy(entropy).as_str(),
        "MZXW6YTBOIAAAAAAAAAAAAAAAA"
    );
    assert_eq!(LinkId::from_entropy([0xff; 17]).as_str(), "7".repeat(26));
}

#[test]
fn a_link_file_may_end_in_one_newline_and_nothing_else() {
    let text = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let link: LinkId = text.parse().unwrap();
    assert_eq!(LinkId::parse_file(text.as_bytes()), Ok(link));
    assert_eq!(LinkId::parse_file(format!("{text}\n").as_bytes()), Ok(link));
    for wrong in [
        "",
        "\n",
        "../../../target",
        &text[1..],
        &format!("{text}\n\n"),
        &format!(" {text}"),
    ] {
        assert!(LinkId::parse_file(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
    let lower = text.to_lowercase();
    assert!(matches!(
        lower.parse::<LinkId>(),
        Err(LinkIdError::Symbol {
            byte: b'a',
            offset: 0,
            ..
        })
    ));
}

#[test]
fn row_130_a_link_leads_to_a_layer_and_nowhere_else() {
    assert_eq!(parse_link_target(b"../base/diff").unwrap().as_str(), "base");
    for wrong in [
        "/etc",
        "../../..",
        "../../etc/diff",
        "../base",
        "../base/diff/",
        "base/diff",
        "../l/diff",
        "../base/diff/../../x/diff",
    ] {
        assert!(parse_link_target(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

/// Bytes, and the same with a few of the bits changed, of which only the first 130 count.
fn alike() -> impl Strategy<Value = ([u8; 17], [u8; 17])> {
    let bit = prop_oneof![0..130_usize, 130..136_usize];
    (any::<[u8; 17]>(), vec(bit, 0..3)).prop_map(|(one, bits)| {
        let mut other = one;
        for bit in bits {
            other[bit / 8] ^= 0x80 >> (bit % 8);
        }
        (one, other)
    })
}

proptest! {
    #[test]
    fn an_accepted_id_is_one_plain_component(text in "\\PC{0,140}|[A-Za-z0-9_.-]{1,140}") {
        if let Ok(id) = text.parse::<LayerId>() {
            let path = std::path::Path::new(id.as_str());
            prop_assert_eq!(path.components().count(), 1);
            prop_assert_eq!(path.file_name(), Some(path.as_os_str()));
            prop_assert_eq!(id.as_str(), text);
        }
    }
}

#[test]
fn link_ids_read_back_and_differ_when_their_first_130_bits_do() {
    let (equal, different) = (Cell::new(0), Cell::new(0));
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let compare = |(one, other)| {
        let (first, second) = (LinkId::from_entropy(one), LinkId::from_entropy(other));
        prop_assert_eq!(first.as_str().len(), LINK_ID_LEN);
        prop_assert_eq!(first.as_str().parse::<LinkId>(), Ok(first));
        let bits = |bytes: [u8; 17]| (bytes[..16].to_vec(), bytes[16] >> 6);
        let is_equal = bits(one) == bits(other);
        prop_assert_eq!(first == second, is_equal);
        if one != other {
            let count = if is_equal { &equal } else { &different };
            count.set(count.get() + 1);
        }
        Ok(())
    };
    TestRunner::new(config).run(&alike(), compare).unwrap();
    let (equal, different) = (equal.get(), different.get());

    // Several times as many come by chance.
    assert!(
        equal >= 20 && different >= 20,
        "{equal} equal, {different} different"
    );
}
