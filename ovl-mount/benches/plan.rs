//! What a plan costs, by strategy and lower layers. Nothing is mounted.
//!
//! `cargo bench -p ovl-mount --bench plan`

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ovl_layout::{LINK_ID_ENTROPY, LayerId, Layout, LinkId, LowerChain};
use ovl_mount::{Access, DataLimit, MountFeatures, OverlaySpec, Strategy};

fn link(index: usize) -> LinkId {
    let mut entropy = [0; LINK_ID_ENTROPY];
    entropy[..8].copy_from_slice(&(index as u64).to_be_bytes());
    LinkId::from_entropy(entropy)
}

fn plan(criterion: &mut Criterion) {
    // Pages of 64 KiB: every strategy has room for 500 layers.
    let features = MountFeatures::new(DataLimit::for_page_size(65536))
        .layers_by_fd(true)
        .lowerdir_plus(true)
        .index(true);
    let layout = Layout::new("/var/lib/docker/overlay2");
    let mut group = criterion.benchmark_group("plan");
    for strategy in Strategy::ALL {
        for lowers in [1, 128, 500] {
            let chain: LowerChain = (0..lowers).map(link).collect();
            let ids: Vec<LayerId> = (0..lowers)
                .map(|index| format!("{index:064x}").parse().unwrap())
                .collect();
            let top = "f".repeat(64).parse().unwrap();
            let spec = OverlaySpec::new(&top, &chain, Access::Writable)
                .lower_ids(&ids)
                .strategy(Some(strategy));
            let parameter = BenchmarkId::new(strategy.as_str(), lowers);
            group.bench_with_input(parameter, &spec, |bencher, spec| {
                bencher.iter(|| black_box(spec).plan(&layout, &features).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, plan);
criterion_main!(benches);
