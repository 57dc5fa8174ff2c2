use ovl_layout::{IdMap, IdMapError};
use proptest::prelude::*;

#[test]
fn ranges_translate_both_ways_and_have_ends() {
    let map: IdMap = "0:1000:1,1:100000:65535".parse().unwrap();
    assert_eq!(map.root(), 1000);
    for (container, host) in [(0, 1000), (1, 100_000), (65_535, 165_534)] {
        assert_eq!(map.to_host(container), Some(host));
        assert_eq!(map.to_container(host), Some(container));
    }
    assert_eq!(map.to_host(65_536), None);
    assert_eq!(map.to_container(999), None);
    assert_eq!(map.to_container(165_535), None);
    assert_eq!(map.to_string(), "0:1000:1,1:100000:65535");
}

#[test]
fn what_is_no_map_is_refused_with_the_reason() {
    for text in [
        "", "0", "0:1", "0:1:2:3", "a:1:2", "-1:1:2", " 0:1:2", "0:+1:2", "0::2", "0:1:2,",
    ] {
        let found = text.parse::<IdMap>();
        assert!(
            matches!(
                found,
                Err(IdMapError::Shape { .. } | IdMapError::Number { .. })
            ),
            "{text:?}: {found:?}"
        );
    }
    assert!(matches!(
        "0:0:0".parse::<IdMap>(),
        Err(IdMapError::Empty { .. })
    ));
    assert!(matches!(
        "0:99999999999:1".parse::<IdMap>(),
        Err(IdMapError::Number { .. })
    ));
    // The last id is no id: chown takes it for "leave it".
    assert!("0:0:4294967295".parse::<IdMap>().is_ok());
    assert!(matches!(
        "0:1:4294967295".parse::<IdMap>(),
        Err(IdMapError::TooLarge { .. })
    ));
    assert!(matches!("1:0:1".parse::<IdMap>(), Err(IdMapError::NoRoot)));
    for text in ["0:10:5,4:100:5", "0:10:5,5:14:5", "0:10:5,0:10:5"] {
        assert!(
            matches!(text.parse::<IdMap>(), Err(IdMapError::Overlap { .. })),
            "{text}"
        );
    }
    assert!("0:10:5,5:5:5".parse::<IdMap>().is_ok());
}

proptest! {
    #[test]
    fn an_id_that_translates_comes_back(first in 0_u32..1000, host in any::<u32>(), count in 1_u32..5000, id in any::<u32>()) {
        let text = format!("0:{host}:{count},{}:{first}:1", 1_000_000);
        if let Ok(map) = text.parse::<IdMap>() {
            prop_assert_eq!(map.to_string(), text);
            if let Some(there) = map.to_host(id % 6000) {
                prop_assert_eq!(map.to_container(there), Some(id % 6000));
            }
        }
    }
}
