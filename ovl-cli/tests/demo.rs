use crate::machine;
use crate::support::{allowed, archive, store};

#[test]
fn the_demo_checks_itself_and_leaves_nothing() {
    let test = "the_demo_checks_itself_and_leaves_nothing";
    let Some(store) = store(test) else { return };
    // It takes what there is.
    if machine::mounts_on_tmpfs().is_err()
        && allowed(test, machine::mounts_on_temporary_files()).is_none()
    {
        return;
    }
    let files: Vec<(String, Vec<u8>)> = (0..40_u8)
        .map(|n| (format!("dir{}/sub/file{n}", n % 5), vec![n; 2000]))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (&**name, &**bytes))
        .collect();
    let rootfs = store.write("rootfs.tar", &archive(&files));
    let temporary = store.path("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let output = store
        .command(&["demo", "--rootfs", &rootfs])
        .env("TMPDIR", &temporary)
        .output()
        .unwrap();
    let (printed, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{printed}{errors}");
    assert!(printed.contains("objects are the same"), "{printed}");
    assert!(printed.ends_with("nothing is left behind\n"), "{printed}");
    assert!(crate::support::is_empty(&temporary));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("ovl-demo"));
}
