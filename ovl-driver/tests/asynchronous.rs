//! The asynchronous driver does what the blocking store does, and keeps its word on cancellation.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use ovl_diff::{DiffPolicy, Timestamp};
use ovl_driver::{
    Base, CreateLayer, Driver, Durability, Error, ErrorKind, ExportOptions, ImportOptions, Kernel,
    MountRequest, OpenOptions, Overlay2, UpkeepOptions, blocking,
};
use ovl_layout::LayerId;
use ovl_quota::{Enforcement, Limits};
use ovl_testkit::ArchiveBuilder;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

type Case = (&'static str, fn(&Kernel, &Path));

pub(crate) const CASES: &[Case] = &[
    (
        "async_import_and_diff_are_the_blocking_ones",
        import_and_diff_are_the_blocking_ones,
    ),
    (
        "async_a_dropped_import_leaves_nothing",
        a_dropped_import_leaves_nothing,
    ),
    (
        "async_a_source_that_fails_leaves_nothing",
        a_source_that_fails_leaves_nothing,
    ),
    (
        "async_a_diff_that_fails_ends_the_stream_with_an_error",
        a_failing_diff_is_an_error,
    ),
    (
        "async_a_dropped_diff_stream_ends_the_work",
        a_dropped_diff_stream_ends_the_work,
    ),
    (
        "async_mounts_are_counted_and_removed_layers_are_gone",
        mounts_are_counted,
    ),
    (
        "async_limits_are_those_of_the_blocking_store",
        limits_are_the_blocking_ones,
    ),
    (
        "async_what_was_begun_is_finished_when_nobody_waits",
        what_was_begun_is_finished,
    ),
    (
        "async_a_future_that_was_never_polled_does_nothing",
        a_future_that_was_never_polled_does_nothing,
    ),
    ("async_check_repair_and_gc_are_the_blocking_ones", upkeep),
    (
        "async_a_refusal_does_not_wait_for_the_source",
        a_refusal_does_not_wait,
    ),
];

fn store(kernel: &Kernel, dir: &Path) -> Overlay2 {
    let options = OpenOptions::new().create(true).durability(Durability::None);
    Overlay2::new(blocking::Overlay2::open(kernel.clone(), &dir.join("home"), options).unwrap())
}

fn layer(id: &str, parent: Option<&str>) -> CreateLayer {
    CreateLayer::new(id.parse().unwrap()).parent(parent.map(|id| id.parse().unwrap()))
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(work)
}

fn archive() -> Vec<u8> {
    ArchiveBuilder::new()
        .dir("./", 0o755)
        .file("large", &[7; 3_000_000])
        .file("small", b"x")
        .finish()
}

fn staged(store: &Overlay2) -> usize {
    let blocking = store.blocking();
    let tree = blocking.kernel().tree();
    let staging = tree
        .open_root(&blocking.layout().store_dir().join("staging"))
        .unwrap();
    tree.read_dir(&staging).unwrap().len()
}

fn import_and_diff_are_the_blocking_ones(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    run(async {
        let source = Box::pin(io::Cursor::new(archive()));
        let applied = store
            .import(&layer("base", None), source, ImportOptions::new())
            .await
            .unwrap();
        assert_eq!(applied.summary.archive.entries, 3);
        let mut stream = store
            .diff(&"base".parse().unwrap(), &Base::Parent)
            .await
            .unwrap();
        let mut streamed = Vec::new();
        stream.read_to_end(&mut streamed).await.unwrap();
        let mut written = Vec::new();
        store
            .blocking()
            .diff(&"base".parse().unwrap(), &Base::Parent, &mut written)
            .unwrap();
        assert!(streamed == written && streamed.len() > 3_000_000);
        let last = Timestamp { secs: 1, nanos: 0 };
        for options in [
            ExportOptions::new().policy(DiffPolicy::Docker),
            ExportOptions::new().clamp_mtime(Some(last)),
        ] {
            let (id, base) = ("base".parse().unwrap(), Base::Empty);
            let mut stream = store.diff_with(&id, &base, options).await.unwrap();
            let mut streamed = Vec::new();
            stream.read_to_end(&mut streamed).await.unwrap();
            let mut with_options = Vec::new();
            let blocking = store.blocking();
            blocking
                .diff_with(&id, &base, options, &mut with_options)
                .unwrap();
            assert!(streamed == with_options && streamed != written);
        }
        assert!(store.contains(&"base".parse().unwrap()).await.unwrap());
        let missing = store
            .diff(&"missing".parse().unwrap(), &Base::Parent)
            .await
            .unwrap_err();
        assert!(matches!(missing, Error::LayerNotFound { .. }));
    });
}

/// Gives some bytes and then nothing any more.
struct Stalled(io::Cursor<Vec<u8>>);

impl AsyncRead for Stalled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.position() >= 2_000_000 {
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

fn a_dropped_import_leaves_nothing(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    run(async {
        let source = Box::pin(Stalled(io::Cursor::new(archive())));
        let options = ImportOptions::new();
        let (base, mut polls) = (layer("base", None), 0);
        let mut import = store.import(&base, source, options);
        std::future::poll_fn(|context| {
            polls += 1;
            assert!(
                import.as_mut().poll(context).is_pending(),
                "the source has not ended"
            );
            context.waker().wake_by_ref();
            if polls < 50 {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    });
    // The runtime has waited for the blocking half.
    assert!(!store.blocking().contains(&"base".parse().unwrap()).unwrap());
    assert_eq!(staged(&store), 0);
}

/// Gives some bytes and then an error.
struct Failing(io::Cursor<Vec<u8>>);

impl AsyncRead for Failing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.position() >= 1_000_000 {
            return Poll::Ready(Err(io::Error::other("the network is down")));
        }
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

fn a_source_that_fails_leaves_nothing(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    let source = Box::pin(Failing(io::Cursor::new(archive())));
    let failed = run(store.import(&layer("base", None), source, ImportOptions::new()));
    let error = failed.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Other,
        "not the archive's fault: {error}"
    );
    assert_eq!(staged(&store), 0);
    assert_eq!(store.blocking().layers().unwrap().layers, []);
}

fn a_failing_diff_is_an_error(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    let id = "base".parse().unwrap();
    run(async {
        store.create(&layer("base", None)).await.unwrap();
        let tree = kernel.tree();
        let diff = tree
            .open_root(store.blocking().layout().layer(&id).diff())
            .unwrap();
        tree.create_file(&diff, "a".as_ref(), 0o644).unwrap();
        tree.create_file(&diff, "b.wh.is fine".as_ref(), 0o644)
            .unwrap();
        tree.create_file(&diff, ".wh.reserved".as_ref(), 0o644)
            .unwrap();
        let mut stream = store.diff(&id, &Base::Parent).await.unwrap();
        let mut streamed = Vec::new();
        let error = stream.read_to_end(&mut streamed).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        let again = Box::pin(io::Cursor::new(streamed));
        let refused = store
            .import(&layer("copy", None), again, ImportOptions::new())
            .await;
        assert_eq!(
            refused.unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "no whole archive"
        );
    });
}

fn a_dropped_diff_stream_ends_the_work(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    run(async {
        let source = Box::pin(io::Cursor::new(archive()));
        store
            .import(&layer("base", None), source, ImportOptions::new())
            .await
            .unwrap();
        let id = "base".parse().unwrap();
        let mut stream = store.diff(&id, &Base::Parent).await.unwrap();
        let mut first = [0; 512];
        stream.read_exact(&mut first).await.unwrap();
        drop(stream);
        // Before any of it was read, too.
        let options = ExportOptions::new().policy(DiffPolicy::Docker);
        drop(store.diff_with(&id, &Base::Empty, options).await.unwrap());
        store.remove(&"base".parse().unwrap(), false).await.unwrap();
    });
    // The runtime ends only when the blocking work has.
    assert_eq!(store.blocking().layers().unwrap().layers, []);
}

fn mounts_are_counted(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    let (id, request) = ("top".parse().unwrap(), MountRequest::new());
    run(async {
        store.create(&layer("base", None)).await.unwrap();
        store
            .create_writable(&layer("top", Some("base")))
            .await
            .unwrap();
        let path = store.mount(&id, &request).await.unwrap();
        assert_eq!(store.mount(&id, &request).await.unwrap(), path);
        assert_eq!(
            store.remove(&id, false).await.unwrap_err().kind(),
            ErrorKind::Busy
        );
        assert_eq!(
            store
                .unmount(&id, ovl_mount::UnmountMode::Now)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            store
                .unmount(&id, ovl_mount::UnmountMode::Now)
                .await
                .unwrap(),
            0
        );
        store.remove(&id, false).await.unwrap();
        assert_eq!(store.layers().await.unwrap().layers.len(), 1);
        assert_eq!(store.name(), "overlay2");
        let status = store.status().await.unwrap();
        assert!(!status.strategies.is_empty());
        let info = store.inspect(&"base".parse().unwrap()).await.unwrap();
        assert!(info.sealed);
        let size = store
            .size(&"base".parse().unwrap(), &Base::Parent)
            .await
            .unwrap();
        assert_eq!(size.inodes, 0);
        assert_eq!(
            store
                .changes(&"base".parse().unwrap(), &Base::Parent)
                .await
                .unwrap(),
            []
        );
        let archive = ArchiveBuilder::new().file("f", b"f").finish();
        store.create(&layer("open", Some("base"))).await.unwrap();
        let source = Box::pin(io::Cursor::new(archive));
        let open = "open".parse().unwrap();
        let applied = store
            .apply(&open, source, ImportOptions::new())
            .await
            .unwrap();
        assert_eq!(applied.size.apparent, 1);
    });
}

fn limits_are_the_blocking_ones(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    let id: LayerId = "work".parse().unwrap();
    run(async {
        store.create(&layer("base", None)).await.unwrap();
        let work = layer("work", Some("base"));
        store.create_writable(&work).await.unwrap();
        let limits = Limits::UNLIMITED.inodes(Some(50));
        let set = store.set_limits(&id, limits).await;
        let found = store.quota(&id).await.unwrap();
        match store.status().await.unwrap().quota {
            Ok(Enforcement::Enforced) => {
                set.unwrap();
                assert_eq!(found.unwrap().usage.unwrap().limits, limits);
            }
            _ => {
                assert_eq!(set.unwrap_err().kind(), ErrorKind::Unsupported);
                assert_eq!(found, None);
            }
        }
        let info = store.inspect(&id).await.unwrap();
        let names: Vec<_> = info.docker_pairs().into_iter().map(|pair| pair.0).collect();
        assert_eq!(names, ["WorkDir", "MergedDir", "UpperDir", "LowerDir"]);
    });
}

/// Polls a future once and drops it, then waits for what it has begun.
async fn begin_and_drop<T>(work: impl Future<Output = T>, mut is_done: impl FnMut() -> bool) {
    {
        let mut work = Box::pin(work);
        std::future::poll_fn(|context| {
            let _ = work.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
    }
    for _ in 0..10_000 {
        if is_done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("what was begun is not done after ten seconds");
}

fn what_was_begun_is_finished(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    let blocking = store.blocking();
    let (base, top) = ("base".parse().unwrap(), "top".parse().unwrap());
    let has = |id| blocking.contains(id).unwrap();
    let holds = || {
        let mount = blocking.inspect(&top).unwrap().mount;
        mount.map_or(0, |mount| mount.holds())
    };
    let request = MountRequest::new();
    let now = ovl_mount::UnmountMode::Now;
    run(async {
        begin_and_drop(store.create(&layer("base", None)), || has(&base)).await;
        let writable = layer("top", Some("base"));
        begin_and_drop(store.create_writable(&writable), || has(&top)).await;
        for expected in [1, 2] {
            begin_and_drop(store.mount(&top, &request), || holds() == expected).await;
        }
        // Reading changes nothing, waited for or not.
        begin_and_drop(store.layers(), || true).await;
        begin_and_drop(store.inspect(&top), || true).await;
        begin_and_drop(store.status(), || true).await;
        begin_and_drop(store.quota(&top), || true).await;
        begin_and_drop(store.contains(&top), || true).await;
        begin_and_drop(store.check(), || true).await;
        begin_and_drop(store.changes(&top, &Base::Parent), || true).await;
        begin_and_drop(store.size(&top, &Base::Parent), || true).await;
        begin_and_drop(store.unmount(&top, now), || holds() == 1).await;
        begin_and_drop(store.unmount_all(now), || holds() == 0).await;
        begin_and_drop(store.remove(&top, false), || !has(&top)).await;
        let is_empty = || blocking.check().unwrap().is_clean();
        begin_and_drop(store.reclaim(), is_empty).await;
        begin_and_drop(store.gc(UpkeepOptions::new()), is_empty).await;
        begin_and_drop(store.repair(UpkeepOptions::new()), is_empty).await;
    });
    assert_eq!(blocking.layers().unwrap().layers.len(), 1);
    assert!(blocking.check().unwrap().findings.is_empty());
}

fn a_future_that_was_never_polled_does_nothing(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    let id = "base".parse().unwrap();
    run(async {
        let new = layer("base", None);
        drop(store.create(&new));
        let source = Box::pin(io::Cursor::new(archive()));
        drop(store.import(&new, source, ImportOptions::new()));
        tokio::task::yield_now().await;
        assert!(!store.contains(&id).await.unwrap());
        store.create(&new).await.unwrap();
        drop(store.remove(&id, true));
        drop(store.mount(&id, &MountRequest::new()));
        tokio::task::yield_now().await;
        assert!(store.inspect(&id).await.unwrap().mount.is_none());
    });
}

fn upkeep(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    run(async {
        store.create(&layer("base", None)).await.unwrap();
        store.create(&layer("top", Some("base"))).await.unwrap();
        let mark = store.blocking().layout().layer(&"base".parse().unwrap());
        let tree = kernel.tree();
        let base = tree.open_root(mark.dir()).unwrap();
        tree.unlink(&base, "committed".as_ref()).unwrap();
        assert!(!store.check().await.unwrap().is_sound());
        let repaired = store.repair(UpkeepOptions::new()).await.unwrap();
        assert_eq!((repaired.mended.len(), repaired.left.is_clean()), (1, true));
        store
            .blocking()
            .remove(&"top".parse().unwrap(), false)
            .unwrap();
        let garbage = store.gc(UpkeepOptions::new()).await.unwrap();
        assert_eq!(garbage.items.len(), 1);
        assert_eq!(store.reclaim().await.unwrap().layers, 0);
    });
}

/// Has nothing to say, and never will.
struct Idle;

impl AsyncRead for Idle {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

fn a_refusal_does_not_wait(kernel: &Kernel, dir: &Path) {
    let store = store(kernel, dir);
    run(async {
        store.create(&layer("base", None)).await.unwrap();
        let base = layer("base", None);
        let taken = store.import(&base, Box::pin(Idle), ImportOptions::new());
        assert_eq!(taken.await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let unknown = "unknown".parse().unwrap();
        let unknown = store.apply(&unknown, Box::pin(Idle), ImportOptions::new());
        assert_eq!(unknown.await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}
