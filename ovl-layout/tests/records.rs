use ovl_layout::{
    HomeSettings, LayerRecord, LinkId, LowerChain, RecordError, SealReason, XattrNamespace,
};

fn link() -> LinkId {
    LinkId::from_entropy([3; 17])
}

fn record() -> LayerRecord {
    let chain: LowerChain = [LinkId::from_entropy([4; 17])].into_iter().collect();
    let mut record = LayerRecord::new(link(), Some("base".parse().unwrap()), &chain);
    record.sealed = Some(SealReason::Import);
    record
}

#[test]
fn a_record_reads_back() {
    let mut opaque = record();
    opaque.root_opaque = true;
    opaque.volatile = Some("5d5d1c2e-0f3c-4f0e-9d6f-2f1f4c1c9a51".to_owned());
    opaque.depth = 0;
    let mut unsynced = record();
    unsynced.unsynced = true;
    for written in [
        record(),
        opaque,
        unsynced,
        LayerRecord::new(link(), None, &LowerChain::default()),
    ] {
        assert_eq!(
            LayerRecord::parse_file(written.to_string().as_bytes()),
            Ok(written)
        );
    }
}

#[test]
fn a_record_that_was_cut_short_is_refused() {
    let text = record().to_string();
    for len in 0..text.len() {
        assert!(
            LayerRecord::parse_file(&text.as_bytes()[..len]).is_err(),
            "cut at {len}"
        );
    }
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let newer = record().to_string().replace("ovl-layer 1", "ovl-layer 2");
    let error = LayerRecord::parse_file(newer.as_bytes()).unwrap_err();
    assert!(
        matches!(error, RecordError::Newer { found: 2, .. }),
        "{error}"
    );
    let other = LayerRecord::parse_file(b"something else\n").unwrap_err();
    assert!(matches!(other, RecordError::Format { .. }), "{other}");
}

#[test]
fn unknown_repeated_and_missing_lines_are_refused() {
    let text = record().to_string();
    let extra = LayerRecord::parse_file(text.replace("end\n", "colour red\nend\n").as_bytes());
    assert!(
        matches!(extra, Err(RecordError::Unknown { .. })),
        "{extra:?}"
    );
    let twice = LayerRecord::parse_file(text.replace("end\n", "depth 1\nend\n").as_bytes());
    assert!(
        matches!(twice, Err(RecordError::Unknown { .. })),
        "{twice:?}"
    );
    let missing = LayerRecord::parse_file(text.replace("depth 1\n", "").as_bytes());
    assert!(
        matches!(missing, Err(RecordError::Missing { .. })),
        "{missing:?}"
    );
    let bad = LayerRecord::parse_file(text.replace("parent base", "parent ../base").as_bytes());
    assert!(matches!(bad, Err(RecordError::Value { .. })), "{bad:?}");
}

#[test]
fn settings_read_back_and_their_depth_is_bounded() {
    let settings = HomeSettings::new(XattrNamespace::User);
    assert_eq!(
        HomeSettings::parse_file(settings.to_string().as_bytes()),
        Ok(settings.clone())
    );
    for depth in ["0", "500", "-1", "many"] {
        let text = settings
            .to_string()
            .replace("max-depth 128", &format!("max-depth {depth}"));
        let error = HomeSettings::parse_file(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, RecordError::Value { .. }),
            "{depth}: {error}"
        );
    }
}
